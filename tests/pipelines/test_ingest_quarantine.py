"""Every row is in its table or in quarantine, once, with its file, line and reason."""

import json

import pandas as pd
import pyarrow.parquet as pq
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.ingest_folder import ITEMS, MAY, NOW, TYPED, WEEK, World, rows_of, spec_of

REASONS = {
    f",i,{MAY},view,": "missing user_id",
    f"u,  ,{MAY},view,": "missing item_id",
    "u,i,,view,": "missing timestamp",
    "u,i,soon,view,": "unreadable timestamp",
    f"u,i,{MAY + 52 * WEEK},view,": "timestamp in the future",
    "u,i,0,view,": "timestamp before 1970",
    f"u,i,{MAY},steal,": "unknown event type",
    f"u,i,{MAY},,": "unknown event type",
    f"u,i,{MAY},view,much": "bad number",
    f"u,i,{MAY},view,inf": "bad number",
    f"u,i,{MAY}": "broken line: wrong number of columns",
    f"u,i,{MAY},view,,,": "broken line: wrong number of columns",
    f"u,{'i' * 257},{MAY},view,": "item_id longer than 256 characters",
    ",,,,x": "missing user_id; missing item_id; missing timestamp; bad number; unknown event type",
}


def test_each_reason(world):
    good = f"{'u' * 256},{'é' * 256},{MAY},view,"
    world.write("events.csv", rows_of(good, *REASONS, good, header="user,item,time,type,value"))
    report = world.ingest(spec_of(**TYPED))
    expected = [*REASONS.values(), "duplicate"]
    assert list(world.reasons().values()) == expected
    assert [line for _, line in world.reasons()] == list(range(3, 3 + len(expected)))
    assert dict(report.quarantined) == {reason: expected.count(reason) for reason in expected}
    assert world.events()["item_id"].tolist() == ["é" * 256]
    kept = json.loads(world.quarantine()["row"][6])
    assert kept == {"user": "u", "item": "i", "time": str(MAY), "type": "steal", "value": None}


def test_the_skew_of_clocks_is_forgiven(world):
    seconds = int(NOW.timestamp())
    world.write("events.csv", rows_of(f"u1,i,{seconds + 86_000}", f"u2,i,{seconds + 87_000}"))
    world.ingest(spec_of())
    assert world.reasons() == {("events.csv", 3): "timestamp in the future"}


def test_given_ids_count(world):
    world.write(
        "events.csv",
        rows_of(
            f"u,i,{MAY},e1",
            f"u,i,{MAY},e2",
            f"u,i,{MAY},e1",
            f"w,i,{MAY},",
            header="user,item,time,id",
        ),
    )
    world.ingest(spec_of(id="id"))
    assert world.events()["event_id"].tolist() == ["e1", "e2"]
    assert world.reasons() == {
        ("events.csv", 4): "duplicate",
        ("events.csv", 5): "missing event_id",
    }


def test_json_values_that_are_lists_do_no_harm(world):
    lines = [
        {"user": ["a"], "item": {"b": 1}, "time": MAY},
        {"user": "u", "item": "i", "time": [MAY]},
    ]
    world.write("events.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    world.ingest(spec_of("events.jsonl"))
    assert world.events()["user_id"].tolist() == ['["a"]']
    assert world.reasons() == {("events.jsonl", 2): "unreadable timestamp"}


KINDS = {
    "good": (b"%(u)s,i,%(t)s,view,1", None),
    "quoted": (b'%(u)s,"i\nj, ""k""",%(t)s,buy,', None),
    "id": (b",i,%(t)s,view,", "missing user_id"),
    "time": (b"%(u)s,i,soon,view,", "unreadable timestamp"),
    "future": (b"%(u)s,i,1900000000,view,", "timestamp in the future"),
    "type": (b"%(u)s,i,%(t)s,steal,", "unknown event type"),
    "number": (b"%(u)s,i,%(t)s,view,1.2.3", "bad number"),
    "short": (b"%(u)s,i,%(t)s", "broken line"),
    "long": (b"%(u)s,i,%(t)s,view,1,1", "broken line"),
    "open": (b'%(u)s,"i,%(t)s,view,1', "broken line"),
    "bytes": (b"%(u)s,\xff,%(t)s,view,1", "not valid utf-8"),
    "nul": (b"%(u)s,\0,%(t)s,view,1", "broken line"),
    "again": (b"first,i,%(t)s,view,1", "duplicate"),
    "blank": (b"", None),
}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(files=[["time", "time"]], end=b"\n", bom=False, last=False, together=False)
@given(
    files=st.lists(st.lists(st.sampled_from(sorted(KINDS)), max_size=15), min_size=1, max_size=3),
    end=st.sampled_from([b"\n", b"\r\n"]),
    bom=st.booleans(),
    last=st.booleans(),
    together=st.booleans(),
)
def test_every_row_is_an_event_or_in_quarantine_once(
    files, end, bom, last, together, tmp_path_factory
):
    world = World(tmp_path_factory.mktemp("world"))
    spec = spec_of("events", **TYPED)
    world.write(
        "events/0.csv", rows_of(f"first,i,{MAY},view,1", header="user,item,time,type,value")
    )
    users, reasons = {"first"}, {}
    for number, kinds in enumerate(files, start=1):
        name, line = f"events/{number}.csv", 3
        lines = [
            b"user,item,time,type,value",
            b"head%d,i,%d,view," % (number, MAY),
        ]  # no two files are equal
        users.add(f"head{number}")
        for kind in kinds:
            text, reason = KINDS[kind]
            user = f"u{number}-{line}"
            lines.append(text % {b"u": user.encode(), b"t": b"%d" % MAY} if b"%" in text else text)
            if reason:
                reasons[name, line] = reason
            elif kind != "blank":
                users.add(user)
            line += 1 + lines[-1].count(b"\n")
        text = end.join(part.replace(b"\n", end) for part in lines) + (end if last else b"")
        world.write(name, (b"\xef\xbb\xbf" if bom else b"") + text)
        if not together:
            world.ingest(spec)
    report = world.ingest(spec)
    events = world.events()
    assert sorted(events["user_id"]) == sorted(users)
    assert set(events["item_id"]) <= {"i", 'i\nj, "k"'}
    found = world.reasons()
    assert found.keys() == reasons.keys()
    assert all(found[key].startswith(reason) for key, reason in reasons.items())
    assert report.total_events == len(users)
    assert together is False or report.quarantined.total() == len(reasons)


def test_entities(world):
    world.write("events.csv", rows_of(f"u,i,{MAY}"))
    world.write(
        "items/1.csv",
        'id,name,tags,price,from\nb,"B, ""b""",x| y ||,2.5,2024-05-01\n'
        "a,old,,,\nc,C,,dear,\n,N,,,\n",
    )
    world.write(
        "items/2.csv",
        "id,name,tags,price,from\na,new,z,,\nd,D,,,soon\ne,E,,,2024-05-01\na,bad,,x,\n",
    )
    report = world.ingest(spec_of(items=ITEMS), shift_to_now=True)
    found = pq.read_table(world.workspace.ingest / "items.parquet").to_pandas()
    assert found["item_id"].tolist() == ["a", "b", "c", "d", "e"]
    assert found["title"].tolist() == ["bad", 'B, "b"', "C", "D", "E"]
    assert [list(tags) for tags in found["tags"]] == [["z"], ["x", "y"], [], [], []]
    assert found["price"].isna().tolist() == [True, False, True, True, True]
    moved = pd.Timestamp("2024-05-01", tz="UTC") + pd.Timedelta(seconds=report.shift_s)
    assert found["available_from"].tolist() == [pd.NaT, moved, pd.NaT, pd.NaT, moved]
    replaced = "duplicate item_id: a later row replaces it"
    assert world.reasons() == {
        ("items/1.csv", 3): replaced,
        ("items/1.csv", 4): "bad number in price: cell left empty",
        ("items/1.csv", 5): "missing item_id",
        ("items/2.csv", 2): replaced,
        ("items/2.csv", 3): "unreadable available_from: cell left empty",
        ("items/2.csv", 5): "bad number in price: cell left empty",
    }
    assert report.items == 5
    assert report.quarantined == {replaced: 2, "missing item_id": 1}
    assert report.cells == {
        "bad number in price: cell left empty": 2,
        "unreadable available_from: cell left empty": 1,
    }


def test_entities_follow_their_files(world):
    users = {
        "path": "users.jsonl",
        "key": "id",
        "attributes": {"langs": "multi_categorical", "raw_x": "text"},
    }
    world.write("events.csv", rows_of(f"u,i,{MAY}"))
    world.write("users.jsonl", '{"id": 1, "langs": ["en", null, "de"], "raw_x": "a"}\n')
    first = world.ingest(spec_of(users=users))
    world.write(
        "users.jsonl", '{"id": 1, "langs": "en|fr", "raw_x": null}\n{"id": 2, "langs": null}\n'
    )
    second = world.ingest(spec_of(users=users))
    found = pq.read_table(world.workspace.ingest / "users.parquet").to_pandas()
    assert found["user_id"].tolist() == ["1", "2"]
    assert [list(langs) for langs in found["langs"]] == [["en", "fr"], []]
    assert (second.files, second.events, second.users) == (0, 0, 2)
    assert first.data_version != second.data_version
