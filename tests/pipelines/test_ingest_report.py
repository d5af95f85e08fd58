"""The report says first what a data engineer wants to see, and warns of implausible shares."""

import pandas as pd
import pytest

from feature_repo.dataset import SpecError
from feature_repo.event_time import FORMS
from feature_repo.files import read_json
from pipelines.ingest.ingest import ImplausibleData
from tests.support.command_line import funnel
from tests.support.ingest_folder import MAY, rows_of, spec_of

USERS = {"path": "users.csv", "key": "id", "attributes": {"age": "numeric", "city": "text"}}
ITEMS = {"path": "items.csv", "key": "id", "attributes": {"name": "text"}, "available_from": "from"}


def told(report, words):
    """Return the only note that has these words."""
    found = [note for note in report.notes if words in note]
    assert len(found) == 1, report.notes
    return found[0]


def warned(report, words):
    return [warning for warning in report.warnings if words in warning]


def test_how_log_and_tables_meet(world):
    lines = [f"u{n % 3},i{n % 4},{MAY + n}" for n in range(12)]
    world.write("events.csv", rows_of(*lines))
    world.write("users.csv", "id,age,city\nu0,1,x\nu1,2,y\nu8,3,z\n")
    world.write("items.csv", "id,name,from\ni0,A,\ni1,B,\ni2,C,\ni8,D,\ni9,E,\n")
    report = world.ingest(spec_of(users=USERS, items=ITEMS))
    users = told(report, "users table")
    assert "67% (8 of 12) of the events are of listed users" in users
    assert "1 of 3 users of the log are not listed (33% (4 of 12) of the events" in users
    assert "the log has 'u2', the table 'u0'" in users
    assert "1 of 3 listed users have no event" in users
    items = told(report, "items table")
    assert "1 of 4 items of the log are not listed" in items
    assert "2 of 5 listed items have no event" in items
    assert told(report, "recommend_unlisted").endswith(": i3")
    assert not report.warnings
    stored = read_json(world.workspace.ingest / "report.json")
    assert stored == report.as_dict()
    assert (stored["unlisted_users"], stored["events_of_unlisted_items"]) == (1, 3)
    assert stored["span"] == ["2024-05-01T12:00:00Z", "2024-05-01T12:00:11Z"]
    assert sum(stored["histogram"]) == 12
    assert "u2" not in (world.workspace.ingest / "report.json").read_text()


def test_tables_that_do_not_meet_the_log_are_a_warning(world):
    world.write("events.csv", rows_of(*(f"u,4.00638E+12,{MAY + n}" for n in range(3))))
    world.write("items.csv", "id,name,from\n4006381333931,A,\n")
    report = world.ingest(spec_of(items=ITEMS))
    [warning] = warned(report, "items table: 0% (0 of 3)")
    assert "the log has '4.00638E+12', the table '4006381333931'" in warning


def test_events_before_their_items_are_available(world):
    world.write("events.csv", rows_of(*(f"u,i{n},{MAY}" for n in range(4))))
    world.write("items.csv", "id,name,from\n" + "".join(f"i{n},{n},2024-06-01\n" for n in range(3)))
    report = world.ingest(spec_of(items=ITEMS))
    [warning] = warned(report, "available_from")
    assert warning.startswith("75% (3 of 4) of the events are before")
    assert report.figures.before_available == 3


def test_attributes_empty_or_constant(world):
    world.write("events.csv", rows_of(f"u,i,{MAY}"))
    world.write("users.csv", "id,age,city\nu,,x\nv,,x\n")
    report = world.ingest(spec_of(users=USERS))
    assert warned(report, "attributes without any value: users.age")
    assert "users.city" in told(report, "one value only")


def test_most_of_a_file_unused_is_a_warning(world):
    world.write("events/1.csv", rows_of(*(f"u{n},i,{MAY}" for n in range(30))))
    world.write("events/2.csv", rows_of(f"u,i,{MAY}", "u,i,28/11/2023 10:00", "v,i,today"))
    report = world.ingest(spec_of("events"))
    assert warned(report, "events/2.csv: 67% (2 of 3) of its rows cannot be used")
    note = told(report, "unreadable timestamp")
    assert note.startswith("2 rows of events not used")
    assert "'28/11/2023 10:00' in events/2.csv, line 3" in note
    assert FORMS in note


def test_repeats_within_a_first_log_are_a_warning(world):
    world.write("events.csv", rows_of(*[f"u,i,{MAY}"] * 5))
    assert warned(world.ingest(spec_of()), "80% (4 of 5) of the rows of events repeat others")


@pytest.mark.parametrize(
    ("times", "unit", "says"),
    [
        (["20", "30"], "s", "are of before 1990"),
        (["1970-06-01", "1971-06-01"], "auto", "are of before 1990"),
        ([*[str(MAY)] * 5, "1975-01-01"], "auto", "decades away from most others"),
        ([*[str(MAY)] * 5, "1"], "s", "decades away from most others"),
    ],
)
def test_times_that_are_absurd_for_a_log_are_a_warning(world, times, unit, says):
    world.write("events.csv", rows_of(*(f"u{n},i,{t}" for n, t in enumerate(times))))
    assert warned(world.ingest(spec_of(timestamp_unit=unit)), says)


@pytest.mark.parametrize(
    ("values", "reason", "sample"),
    [
        (["20261005", str(MAY)], "timestamp is no epoch time", "20261005"),
        (["46300.4", "2024-05-01"], "timestamp is no epoch time", "46300.4"),
        (["10:15", str(MAY)], "unreadable timestamp", "10:15"),
        (["0", str(MAY)], "timestamp before 1970", "0"),
        (["202410051015", str(MAY)], "timestamp is no epoch time", "202410051015"),
    ],
)
def test_a_time_that_is_none_is_shown(world, values, reason, sample):
    world.write("events.csv", rows_of(*(f"u{n},i,{t}" for n, t in enumerate(values))))
    report = world.ingest(spec_of())
    assert report.events == 1
    assert f"{reason}, such as '{sample}' in events.csv, line 2" in told(report, reason)


def test_no_usable_event_says_which_value_where_and_what_is_read(world):
    world.write("events.csv", rows_of("u,i,2026-10-05 10:00:00 PST", "u,i,28.11.2026"))
    with pytest.raises(SpecError) as refused:
        world.ingest(spec_of())
    message = str(refused.value)
    assert "'2026-10-05 10:00:00 PST' in events.csv, line 2" in message
    assert FORMS in message
    assert "\n" not in message
    assert not world.workspace.root.exists()


def test_a_log_of_stray_quotation_marks_says_how_to_read_it(world):
    lines = [f'u{n}\t"best" i{n}\t{MAY}' for n in range(3)]
    world.write("events.tsv", rows_of(*lines, header="user\titem\ttime"))
    with pytest.raises(SpecError, match="set quoting = 'none'"):
        world.ingest(spec_of("events.tsv", separator="\t"))
    assert world.ingest(spec_of("events.tsv", separator="\t", quoting="none")).events == 3


def test_strict_writes_nothing_where_a_share_is_implausible(world):
    world.write("events.csv", rows_of(f"u,i,{MAY}", "undefined,i,1", "null,i,2"))
    with pytest.raises(ImplausibleData, match="67% .2 of 3. of the rows of events cannot be used"):
        world.ingest(spec_of(), strict=True)
    assert not world.workspace.root.exists()
    world.write("events.csv", rows_of(f"u,i,{MAY}", f"v,i,{MAY}"))
    assert world.ingest(spec_of(), strict=True).events == 2


SPEC = """name = "tiny"
[events]
path = "events.csv"
user = "user"
item = "item"
timestamp = "time"
"""


def test_the_command_shows_it_and_has_an_exit_code(world):
    now = int(pd.Timestamp.now(tz="UTC").timestamp())
    world.write("events.csv", rows_of(f"u,i,{now - 9}", f"u,j,{now - 5}", "nan,[i],soon"))
    world.write("dataset.toml", SPEC)
    options = ("--data", world.folder / "dataset.toml", "--home", world.workspace.root)
    strict = funnel("ingest", *options, "--strict")
    assert strict.returncode == 1
    assert "33% (1 of 3) of the rows of events cannot be used" in strict.stderr
    assert not (world.workspace.ingest / "manifest.json").exists()
    done = funnel("ingest", *options)
    assert done.returncode == 0
    for words in (
        "rows read",
        "first event",
        "WARNING: 33% (1 of 3)",
        "'nan' in events.csv, line 4",
    ):
        assert words in done.stderr, done.stderr


def test_own_column_names_are_refused_at_once(world):
    world.write("events.csv", rows_of(f"u,i,{MAY}"))
    spec = SPEC + '[users]\npath = "u.csv"\nkey = "id"\nattributes = { tower_score = "numeric" }\n'
    world.write("dataset.toml", spec)
    refused = funnel("ingest", "--data", world.folder / "dataset.toml")
    assert refused.returncode == 2
    assert "['tower_score']" in refused.stderr
    assert "rename" in refused.stderr
