"""Declared features change, a release is made of the new ones, rolled back and promoted again.

All the while clients ask for recommendations and send events: no request fails.
"""

import json
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from itertools import cycle

import httpx
import pytest

from feature_repo import columns as c
from pipelines.ingest.ingested import read_events
from pipelines.training.release import make_release
from pipelines.training.release_pointer import promote, rollback
from pipelines.training.train import TrainSettings, train
from pipelines.workflow.stages import run_features, run_materialize
from ranking.config import RankerConfig, TreeConfig
from serving.releases.release import load_release
from tests.support.forked import Forked
from tests.support.small_world import silent
from tests.support.tiny_server import tiny_server
from tests.support.tiny_world import SAMPLE, TOWERS, tiny_world
from tests.support.waiting import wait_until

pytestmark = pytest.mark.faults

K = 5

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


def ask(url, users, stop):
    """Ask for one user's recommendations after the other; print status and body of each answer."""
    _post(f"{url}/v1/recommendations", ({"user_id": user, "k": K} for user in cycle(users)), stop)


def send(url, users, stop):
    """Send an event of one user after the other; print status and body of each answer."""
    events = (
        {"event_id": f"new-{n}", "user_id": user, "item_id": "i0003", "type": "purchase",
         "timestamp": time.time(), "value": 3.0}
        for n, user in enumerate(cycle(users))
    )  # fmt: skip
    _post(f"{url}/v1/events", ({"events": [event]} for event in events), stop)


def _post(url, bodies, stop):
    with httpx.Client(timeout=60) as client:
        for body in bodies:
            try:
                reply = client.post(url, json=body)
                found = [reply.status_code, reply.json()]
            except httpx.TransportError as error:
                found = [0, repr(error)]
            sys.stdout.write(json.dumps(found) + "\n")
            if stop.exists():
                return
            time.sleep(0.05)


@contextmanager
def clients(server, users, folder):
    """Ask and send until the end; the answers are in ``ask`` and ``send`` of a folder then."""
    stop = folder / "stop"
    running = [
        Forked(one, server.url, users, stop, out=folder / one.__name__) for one in (ask, send)
    ]
    try:
        yield
    finally:
        stop.touch()
        assert [one.wait(90) for one in running] == [0, 0]


def answer(server, user, k=K):
    body = {"user_id": user, "k": k}
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
        first = make_release(workspace, ranker="lightgbm")  # of minutes, trees see no difference
        users = [str(user) for user in read_events(workspace)[c.USER].unique()]

        with ExitStack() as stack:
            server = stack.enter_context(tiny_server(workspace, first))
            # Some have seen almost all of the few items, and all see one more now.
            users = [user for user in users if len(answer(server, user, K + 1)[1]) > K]
            resting, active = users[:5], users[5:]
            assert len(active) > 20
            before = [answer(server, user) for user in resting]
            stack.enter_context(clients(server, active, tmp_path))
            second = _release_of_changed_features(workspace, tmp_path)
            newer = serves(server, second)
            of_second = [answer(server, user) for user in resting]

            assert rollback(workspace) == first
            older = serves(server, first)
            after = [answer(server, user) for user in resting]
            assert promote(workspace, newer) == second
            serves(server, second)
            again = [answer(server, user) for user in resting]

    _none_failed(tmp_path, {older, newer})
    _same(before, after)
    _same(of_second, again)
    assert [scores for _, scores, _ in before] != [scores for _, scores, _ in of_second]


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
        assert list(later) == list(scores)
        assert later == pytest.approx(scores, rel=1e-6)


def _none_failed(folder, releases):
    """Check the clients' answers: none failed, and every list has its items."""
    asked, sent = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("ask", "send")
    )
    statuses = [dict(Counter(status for status, _ in found)) for found in (asked, sent)]
    report = {"fault": "features changed, released, rolled back, promoted again",
              "requests": statuses[0], "events": statuses[1]}  # fmt: skip
    sys.stdout.write(json.dumps(report) + "\n")
    assert set(statuses[0]) == {200} and set(statuses[1]) == {202}, report
    assert {len({item["item_id"] for item in body["items"]}) for _, body in asked} == {K}
    assert {body["release"] for _, body in asked} == releases
    assert {body["accepted"] for _, body in sent} == {1}
