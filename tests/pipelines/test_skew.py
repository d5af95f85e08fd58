"""What was served, recomputed.

A healthy system has no skew, and whatever is wrong in the tables is found and named.
"""

import json
import random
import shutil
import time
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feature_repo import columns as c
from pipelines.features.whole_tables import list_files
from pipelines.operations.skew import difference, newest_impressions, skew
from pipelines.streaming.offline import archive
from pipelines.training.release_pointer import current_release
from pipelines.workflow.stages import run_materialize
from serving import engine as engine_module
from serving.api.schemas import RecommendationRequest
from serving.engine import Engine
from serving.releases.release import load_release
from tests.support.command_line import funnel
from tests.support.streaming_job import streaming

LATER_S = 91 * 86_400
"""Past the TTL of daily features."""


class Visitors:
    """Users of the data, new ones, and some who only look.

    Clocks are wrong, so events come in any order.
    """

    def __init__(self, release):
        known = release.codec.users.values
        self.clickers = [*known[:30], *(f"new-{n}" for n in range(10))]
        self.quiet = [*known[30:60], "nobody"]
        self._items, self._rng, self._number = release.codec.items.values, random.Random(3), 0

    def click(self, engine, count):
        now = time.time()
        events = [
            {"event_id": f"e{self._rng.random()}", "user_id": self._rng.choice(self.clickers),
             "item_id": self._rng.choice(self._items),
             "type": self._rng.choice(engine.release.codec.spec.event_types),
             "timestamp": now + self._rng.choice([0, 0, -0.3, -0.6, 200, -4_000])}
            for _ in range(count)
        ]  # fmt: skip
        assert engine.accept(events).accepted == count

    def ask(self, engine, count):
        for _ in range(count):
            user = self._rng.choice(self.quiet if self._rng.random() < 0.2 else self.clickers)
            engine.recommend(RecommendationRequest(user_id=user, k=5))


def ask_later(engine, users, patch):
    """Ask when every daily feature is past its TTL."""
    later = time.time() + LATER_S
    patch.setattr(
        engine_module, "time", SimpleNamespace(time=lambda: later, perf_counter=time.perf_counter)
    )
    now = datetime.fromtimestamp(later, UTC)
    items = engine.release.items.with_activity(
        engine.snapshot.online.item_activity(now.timestamp())
    )
    engine.snapshot = replace(
        engine.snapshot, items=items, items_as_of=now.isoformat(timespec="microseconds")
    )
    return [
        engine.recommend(RecommendationRequest(user_id=user, k=5))["degraded"] for user in users
    ]


@pytest.fixture(scope="module")
def served(built, copy, tmp_path_factory):
    """A world that served requests before, while and after their users' events were streamed."""
    with (
        copy(built.workspace, tmp_path_factory.mktemp("served") / "w") as workspace,
        pytest.MonkeyPatch.context() as patch,
    ):
        shutil.rmtree(
            workspace.impressions, ignore_errors=True
        )  # of another server, whose events are in another log
        run_materialize(workspace)
        release = load_release(current_release(workspace))
        visitors, first = Visitors(release), Engine(release, workspace)
        try:
            for _ in range(15):
                visitors.click(first, 3)
                visitors.ask(first, 5)
            with streaming(workspace) as wait_until_drained:
                wait_until_drained()
                second = Engine(release, workspace)
                for _ in range(40):
                    visitors.click(second, 3)
                    visitors.ask(second, 4)
                    time.sleep(0.05)
                wait_until_drained()
                visitors.ask(second, 40)
            degraded = ask_later(first, visitors.quiet, patch)
            assert all("stale_user_activity" in words for words in degraded[:-1])
        finally:
            first.close()
        second.close()
        yield workspace


@pytest.fixture
def spoilt(served, copy, tmp_path):
    with copy(served, tmp_path / "w") as workspace:
        yield workspace


def report(workspace):
    return skew(workspace, newest_impressions(workspace, None, None), lambda *_: None)


def rows(workspace):
    return newest_impressions(workspace, None, None).to_pylist()


def add_one(folder, column, key, name):
    """Add 1 to a column of one key's rows, whatever their time."""
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        more = pc.if_else(pc.equal(table[key], name), pc.add(table[column], 1), table[column])
        pq.write_table(table.set_column(table.column_names.index(column), column, more), path)
    list_files(folder.resolve().parent)  # they are taken for what Spark has written


def test_a_healthy_system_has_no_skew(served):
    found, served_rows = report(served), rows(served)
    assert (
        found.figures()["features"],
        found.differing,
        found.requests_differing,
        found.row_missing,
    ) == ({}, 0, 0, 0)
    assert (found.not_streamed_yet, found.other_releases) == (0, 0)
    assert found.requests == len(served_rows) > 250
    assert (
        found.items == sum(bool(vector) for row in served_rows for vector in row["numeric"]) > 1_000
    )
    codec = load_release(current_release(served)).codec
    assert found.values == found.items * (len(codec.numeric) + len(codec.categorical))
    assert {feature.compared for feature in found.features.values()} == {found.items}
    kinds = {
        (row["row_position"] in (None, "0-0"), row["position"] == row["row_position"])
        for row in served_rows
    }
    assert len(kinds) == 4  # neither, events only, a streamed row only, both
    assert len({row["items_as_of"] for row in served_rows}) == 3


def test_a_changed_value_is_named_with_its_requests(spoilt):
    asked = rows(spoilt)
    user = next(
        row["user_id"]
        for row in asked
        if row["row_position"] == "0-0" and "stale_user_activity" not in row["degraded"]
    )
    add_one(spoilt.features / "user_activity", "active_days", c.USER, user)
    found = report(spoilt)
    theirs = [
        row
        for row in asked
        if row["user_id"] == user and "stale_user_activity" not in row["degraded"]
    ]
    assert list(found.figures()["features"]) == ["active_days"]
    feature = found.features["active_days"]
    assert feature.differing == found.differing == sum(len(row["numeric"]) for row in theirs) > 0
    assert (feature.largest, feature.example) == (1.0, theirs[0]["request_id"])
    assert found.requests_differing == len(theirs)


def test_the_command_says_which_feature_and_ends_with_1(spoilt):
    item = rows(spoilt)[-100]["item_ids"][0]
    add_one(spoilt.features / "item_activity", "events_all", c.ITEM, item)
    done = funnel("skew", "--home", spoilt.root)
    assert done.returncode == 1
    name = "item_events_all"
    assert f"most often {name}, as in request" in done.stderr.splitlines()[-1]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (
        list(figures["features"]) == [name]
        and figures["differing"] == figures["features"][name] > 0
    )


def test_a_streamed_row_that_differs_is_found(spoilt):
    for path in (spoilt.features / "user_history").glob("stream-*.parquet"):
        table = pq.read_table(path)
        shorter = pa.array(
            [items[1:] for items in table[c.HISTORY_ITEMS].to_pylist()], pa.list_(pa.string())
        )
        times = pa.array(
            [times[1:] for times in table[c.HISTORY_TIMES].to_pylist()], pa.list_(pa.int64())
        )
        pq.write_table(
            table.set_column(2, c.HISTORY_ITEMS, shorter).set_column(3, c.HISTORY_TIMES, times),
            path,
        )
    assert "history_length" in report(spoilt).figures()["features"]


def test_a_streamed_row_that_is_gone_has_its_own_heading(spoilt):
    for path in spoilt.features.glob("*/stream-*.parquet"):
        if c.USER in pq.read_schema(path).names:
            path.unlink()
    found = report(spoilt)
    streamed = [row for row in rows(spoilt) if row["row_position"] not in (None, "0-0")]
    assert found.row_missing == found.requests_differing == found.differing == len(streamed) > 50
    assert found.figures()["features"] == {"row_missing": len(streamed)}


def test_what_cannot_be_known_is_left_out(spoilt):
    shutil.rmtree(archive(spoilt))
    found = report(spoilt)
    waiting = [row for row in rows(spoilt) if row["position"] not in (None, "0-0")]
    assert (found.not_streamed_yet, found.differing) == (len(waiting), 0)
    assert found.requests == len(rows(spoilt)) - len(waiting) > 0
    shutil.rmtree(current_release(spoilt))
    assert (report(spoilt).requests, report(spoilt).other_releases) == (0, found.requests)


def test_the_newest_and_the_latest(served):
    times = [row["time"] for row in rows(served)]
    assert times == sorted(times)
    assert newest_impressions(served, 7, None)["time"].to_pylist() == times[-7:]
    future = -(LATER_S / 3_600 - 1)  # requests were served as of a moment that is still to come
    late = newest_impressions(served, None, future)["time"].to_pylist()
    assert late == [t for t in times if t > time.time() + LATER_S / 2] and late


def test_numbers_within_the_tolerance_agree():
    nan = np.nan
    logged = np.array([[1.0, nan, nan, 2.0, 1e6, 1e6, 0.0]])
    found = np.array([[1.0, nan, 1.0, nan, 1e6 + 9, 1e6 + 11, 2e-5]])
    np.testing.assert_array_equal(
        difference(logged, found, 1e-5), [[0, 0, np.inf, np.inf, 0, 11, 2e-5]]
    )
    np.testing.assert_array_equal(
        difference(logged, found, 0.0), [[0, 0, np.inf, np.inf, 9, 11, 2e-5]]
    )


def test_before_anything_was_served_it_says_so(tmp_path):
    done = funnel("skew", "--home", tmp_path)
    assert done.returncode == 2 and "run 'funnel serve'" in done.stderr
