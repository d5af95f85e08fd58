"""Declared features change, a release is made of the new ones, rolled back and promoted again.

All the while clients ask for recommendations and send events: no request fails.
"""

import json
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager

import httpx
import pytest

from benchmarks.load import Load, encode_requests, load
from feature_repo import columns as c
from pipelines.ingest.ingested import read_events
from pipelines.training.release import make_release
from pipelines.training.release_pointer import current_release, promote, rollback
from pipelines.training.train import TrainSettings, train
from pipelines.workflow.stages import run_features, run_materialize
from ranking.config import RankerConfig, TreeConfig
from serving.releases.release import load_release
from tests.support.small_world import silent
from tests.support.tiny_server import tiny_server
from tests.support.tiny_world import SAMPLE, TOWERS, tiny_world
from tests.support.waiting import wait_until

pytestmark = pytest.mark.faults

K = 10
_TURN_S = 3.0

ADDED = """
visits = StreamFeatureView(
    name="visits",
    entities=[user],
    source=events,
    timestamp_field="timestamp",
    aggregations=[
        Aggregation(column="event_id", function="count", time_window=timedelta(days=30), name="n_30d")
    ],
)
ranking = FeatureService(name="ranking", features=[*defaults.ranking, spend, visits, margins])
"""  # noqa: E501


def changed(text):
    """Return the example's declarations without ``bought`` and ``dear``, and with ``visits``."""
    start, end = text.index("bought = "), text.index("margins = ")
    text = text[:start] + text[end:]
    start, end = text.index("@on_demand"), text.index("user_tower = ")
    text = text[:start] + text[end:]
    return text[: text.index("ranking = ")] + ADDED


class Clients:
    """Clients of one kind, which send requests until they are told to end."""

    def __init__(self, port, requests, rate):
        """``requests(turn)`` returns the encoded requests of a turn, ``rate`` is a second's."""
        self.found = Load()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._send, args=(port, requests, rate))
        self._thread.start()

    def _send(self, port, requests, rate):
        turn = 0
        while not self._end.is_set():
            sent = requests(turn)
            self.found.add(load(port, sent, connections=2, seconds=_TURN_S, rate=rate, keep=True))
            turn += 1

    def stop(self):
        self._end.set()
        self._thread.join()


@contextmanager
def clients(server, users):
    """Ask for all users' recommendations and send their events until the end."""
    bodies = [json.dumps({"user_id": user, "k": K}).encode() for user in users]
    asked = encode_requests("/v1/recommendations", bodies)

    def events(turn):
        rate_s, now = 10, time.time()
        sent = [
            {"event_id": f"new-{turn}-{n}", "user_id": users[n % len(users)], "item_id": "i0003",
             "type": "purchase", "timestamp": now, "value": 3.0}
            for n in range(int(rate_s * _TURN_S) + 1)
        ]  # fmt: skip
        return encode_requests(
            "/v1/events", [json.dumps({"events": [event]}).encode() for event in sent]
        )

    both = Clients(server.port, lambda _: asked, 20), Clients(server.port, events, 10)
    try:
        yield both
    finally:
        for one in both:
            one.stop()


def answer(server, user):
    body = {"user_id": user, "k": K}
    reply = httpx.post(f"{server.url}/v1/recommendations", json=body, timeout=20).json()
    return reply["release"], {i["item_id"]: i["score"] for i in reply["items"]}, reply["degraded"]


def serves(server, folder):
    """Wait until every worker answers from a release."""
    name = load_release(folder).id

    def all_of_it():
        return {answer(server, "u0001")[0] for _ in range(12)} == {name}

    wait_until(all_of_it, 90, "for a promoted release")
    return name


def test_features_change_and_a_release_is_rolled_back_while_clients_ask(copy, tmp_path):
    with copy(tiny_world(), tmp_path / "w") as workspace:
        _declare(workspace, tmp_path, lambda text: text)
        run_materialize(workspace)
        first = current_release(workspace)
        users = [str(user) for user in read_events(workspace)[c.USER].unique()]
        resting, active = users[:5], users[5:]

        with tiny_server(workspace, first) as server, clients(server, active) as (asking, sending):
            wait_until(lambda: asking.found.answers and sending.found.answers, 60)
            before = [answer(server, user) for user in resting]
            second = _release_of_changed_features(workspace, tmp_path)
            newer = serves(server, second)
            of_second = [answer(server, user) for user in resting]

            assert rollback(workspace) == first
            older = serves(server, first)
            after = [answer(server, user) for user in resting]
            assert promote(workspace, newer) == second
            serves(server, second)
            again = [answer(server, user) for user in resting]
            time.sleep(_TURN_S)

    assert older != newer
    _same(before, after)
    _same(of_second, again)
    assert [scores for _, scores, _ in before] != [scores for _, scores, _ in of_second]
    _none_failed(asking.found, sending.found, {older, newer})


def _declare(workspace, folder, change):
    """Let the workspace's data set have changed declarations in ``folder``."""
    file = workspace.declarations
    text = change(file.read_text())
    if file.parent != folder:
        (folder / "margins.parquet").write_bytes((file.parent / "margins.parquet").read_bytes())
    (folder / "features.py").write_text(text)
    spec = workspace.spec().model_copy(update={"features": str(folder / "features.py")})
    (workspace.ingest / "dataset.json").write_text(spec.model_dump_json())


def _release_of_changed_features(workspace, folder):
    _declare(workspace, folder, changed)
    run_features(workspace)
    run_materialize(workspace)
    rankers = RankerConfig(kinds=("lightgbm",), trees=TreeConfig(rounds=20, learning_rate=0.2))
    train(workspace, silent, TrainSettings(towers=TOWERS, sample=SAMPLE, rankers=rankers))
    return make_release(workspace)


def _same(before, after):
    for (_, scores, degraded), (_, later, now_degraded) in zip(before, after, strict=True):
        assert now_degraded == degraded == []
        assert later == pytest.approx(scores, rel=1e-4)


def _none_failed(asked, sent, releases):
    """Check all answers: none failed, and every list has its items."""
    report = {
        "fault": "features changed, released, rolled back, promoted again",
        "requests": dict(asked.statuses), "events": dict(sent.statuses),
        "retried": asked.retried + sent.retried, "p99_ms": asked.percentile(99),
    }  # fmt: skip
    sys.stdout.write(json.dumps(report) + "\n")
    assert set(asked.statuses) == {200} and set(sent.statuses) == {202}, report
    assert asked.retried == sent.retried == 0
    bodies = [json.loads(body) for _, _, body in asked.answers]
    assert {len({item["item_id"] for item in body["items"]}) for body in bodies} == {K}
    assert Counter(body["release"] for body in bodies).keys() == releases
    accepted = [json.loads(body) for _, _, body in sent.answers]
    assert all(body["accepted"] + body["duplicates"] == 1 for body in accepted)
