"""The real server over HTTP: `funnel serve` on the served release, its Feast and its Redis."""

import json
import os
import signal
import time
from contextlib import suppress
from datetime import UTC, datetime

import pyarrow.parquet as pq
import pytest
import redis

from feature_repo import columns as c
from feature_repo.stores.embedded_redis import socket_path
from pipelines.ingest.ingested import read_events
from pipelines.workflow.stages import run_materialize
from tests.support import forked
from tests.support.api_server import start_server, stop
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def client(served):
    process, client = start_server(served.workspace)
    yield client
    stop(process)


@pytest.fixture(scope="module")
def user(served):
    events = read_events(served.workspace, [c.USER, c.POSITIVE])
    return events.loc[events[c.POSITIVE], c.USER].iloc[-1]


def recommend(client, user, **options):
    answer = client.post("/v1/recommendations", json={"user_id": user, **options})
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(answer):
    return [item["item_id"] for item in answer["items"]]


def test_recommendations(client, user, served):
    answer = recommend(client, user, k=10)
    assert answer["release"] == served.release.name
    assert len(set(ids(answer))) == 10
    assert answer["degraded"] == []
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert {source for item in answer["items"] for source in item["sources"]} <= {
        "two_tower", "similar", "popular", "trending", "new"
    }  # fmt: skip
    events = read_events(served.workspace, [c.USER, c.ITEM])
    assert not set(ids(answer)) & set(events.loc[events[c.USER] == user, c.ITEM])


def test_the_same_request_gives_the_same_items(client, user):
    assert ids(recommend(client, user, k=20)) == ids(recommend(client, user, k=20))


def test_filters_and_excludes(client, user, served):
    first = ids(recommend(client, user, k=5))
    assert not set(first) & set(ids(recommend(client, user, k=20, exclude=first)))
    table = pq.read_table(served.workspace.ingest / "items.parquet").to_pylist()
    genre = table[0]["genre"][0]
    having = {row["item_id"] for row in table if genre in row["genre"]}
    only = ids(recommend(client, user, k=200, filters={"genre": {"in": [genre]}}))
    without = ids(recommend(client, user, k=200, filters={"genre": {"not_in": [genre]}}))
    assert only and set(only) <= having
    assert without and not set(without) & having
    answer = client.post(
        "/v1/recommendations", json={"user_id": user, "filters": {"colour": {"in": ["red"]}}}
    )
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert "colour" in answer.json()["detail"]


def test_explain(client, user):
    answer = recommend(client, user, k=5, explain=True)
    for item in answer["items"]:
        explained = item["explain"]
        assert set(explained["sources"]) == set(item["sources"])
        assert explained["rank_score"] == pytest.approx(item["score"])
        assert 1 <= len(explained["features"]) <= 8
        assert set(explained["probabilities"]) == {"view", "like", "purchase"}
    assert answer["filtered"]["seen"] > 0
    assert "explain" not in recommend(client, user, k=1)["items"][0]


def test_an_unknown_user_is_served(client):
    answer = recommend(client, "никто 👻", k=20)
    assert len(ids(answer)) == 20
    assert set(answer["degraded"]) == {"unknown_user", "no_history"}


def test_an_accepted_event_changes_the_next_response(client):
    newcomer = f"new-{time.time_ns()}"
    before = recommend(client, newcomer, k=10)
    clicked = before["items"][0]["item_id"]
    event = {
        "event_id": newcomer,
        "user_id": newcomer,
        "item_id": clicked,
        "type": "view",
        "timestamp": time.time(),
    }
    answer = client.post("/v1/events", json={"events": [event, event]})
    assert answer.status_code == 202
    assert answer.json() == {
        "accepted": 1,
        "duplicates": 1,
        "duplicate_indices": [1],
        "rejected": [],
    }
    after = recommend(client, newcomer, k=10)
    assert clicked not in ids(after)
    assert after["degraded"] == []
    assert ids(after) != [i for i in ids(before) if i != clicked]
    features = client.get(f"/v1/users/{newcomer}/features").json()
    assert features["known"] and features["features"]["history_item_ids"] == [clicked]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": "stare"}, "unknown type"),
        ({"timestamp": 12.0}, "7 days ago"),
        ({"timestamp": time.time() + 9_999}, "future"),
        ({"timestamp": "yesterday"}, "ISO 8601"),
        ({"timestamp": 20261128}, "if the day 2026-11-28 is meant"),
        ({"timestamp": True}, "ISO 8601"),
        ({"timestamp": None}, "ISO 8601"),
        ({"user_id": "undefined"}, "stands for a missing id"),
        ({"item_id": "\\N"}, "stands for a missing id"),
        ({"user_id": "\t"}, "stands for a missing id"),
        ({"value": 1e308}, "1000000000000000"),
        ({"user_id": "x" * 257}, "user_id"),
        ({"item_id": 7}, "item_id"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_bad_event_is_rejected_alone(client, change, reason):
    good = {"event_id": f"e{time.time_ns()}", "user_id": "u", "item_id": "i0001", "type": "view"}
    good["timestamp"] = time.time()
    answer = client.post("/v1/events", json={"events": [{**good, **change}, good]}).json()
    assert answer["accepted"] == 1
    assert [r["index"] for r in answer["rejected"]] == [0]
    assert reason in answer["rejected"][0]["reason"]


def test_an_id_of_another_users_event_is_named_by_its_index(client):
    one = f"e{time.time_ns()}"
    event = {"event_id": one, "user_id": "u", "item_id": "i0001", "type": "view"}
    event["timestamp"] = time.time()
    bad, other, new = (
        event | {"type": "stare"},
        event | {"user_id": "v"},
        event | {"event_id": f"{one}-2"},
    )
    answer = client.post("/v1/events", json={"events": [bad, event, other, new, other]}).json()
    assert (answer["accepted"], answer["duplicates"]) == (2, 2)
    assert answer["duplicate_indices"] == [2, 4]
    assert [rejected["index"] for rejected in answer["rejected"]] == [0]


@pytest.mark.parametrize("form", ["ms", "us", "text", "iso", "word"])
def test_a_time_in_every_form(client, form):
    now = int(time.time())
    utc = datetime.fromtimestamp(now, UTC)
    forms = {"ms": now * 1_000, "us": now * 1_000_000, "text": str(now), "iso": utc.isoformat()}
    forms["word"] = utc.strftime("%Y-%m-%d %H:%M:%S UTC")
    user = f"{form}-{time.time_ns()}"
    event = {"event_id": user, "user_id": f" {user} ", "item_id": "i0001", "type": " VIEW"}
    answer = client.post("/v1/events", json={"events": [event | {"timestamp": forms[form]}]})
    assert answer.json()["accepted"] == 1
    features = client.get(f"/v1/users/{user}/features").json()["features"]
    assert features["history_timestamps"] == [now]


def test_similar_items(client):
    answer = client.get("/v1/items/i0003/similar", params={"k": 15}).json()
    found = ids(answer)
    assert len(set(found)) == 15 and "i0003" not in found
    assert client.get("/v1/items/nothing/similar").status_code == 404


def test_the_examples_of_the_description_work(client):
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method not in ("get", "post"):
                continue
            names = {"i0007" if "item_id" in path else "u0042"}
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    values = {example["value"] for example in parameter["examples"].values()}
                    assert values == names
                    path = path.replace(f"{{{parameter['name']}}}", values.pop())
            body = {}
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                body["json"] = schemas[schema["$ref"].rpartition("/")[2]]["examples"][0]
            answer = client.request(method, path, **body)
            assert answer.status_code in (200, 202), (path, answer.text)
            if path == "/v1/events":
                assert answer.json()["rejected"] == []


def test_a_batch_is_answered_in_its_order(client, user):
    asked = [
        {"user_id": user, "k": 7},
        {"user_id": "a stranger", "k": 3},
        {"user_id": user, "k": 5, "exclude": ["i0001"]},
    ]
    answer = client.post("/v1/recommendations:batch", json={"requests": asked})
    assert answer.status_code == 200
    responses = answer.json()["responses"]
    assert [ids(one) for one in responses] == [
        ids(recommend(client, one["user_id"], **one_of(one))) for one in asked
    ]
    assert client.post("/v1/recommendations:batch", json={"requests": []}).status_code == 422
    assert (
        client.post("/v1/recommendations:batch", json={"requests": [{"user_id": ""}]}).status_code
        == 422
    )


def one_of(request):
    return {name: value for name, value in request.items() if name != "user_id"}


def test_answers_have_an_id_and_say_how_they_may_be_used(client, user):
    answer = client.post(
        "/v1/recommendations", json={"user_id": user}, headers={"x-request-id": "mine"}
    )
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/nowhere").headers["content-type"] == "application/problem+json"


def test_a_removed_item_is_shown_no_more_and_a_restored_one_again(client, user):
    best = ids(recommend(client, user, k=3))[0]
    assert client.delete(f"/v1/items/{best}").json() == {"item_id": best, "changed": True}
    assert client.delete(f"/v1/items/{best}").json()["changed"] is False
    assert best not in ids(recommend(client, user, k=200))
    assert best not in ids(client.get("/v1/items/i0003/similar", params={"k": 200}).json())
    assert client.put(f"/v1/items/{best}").json() == {"item_id": best, "changed": True}
    assert ids(recommend(client, user, k=3))[0] == best
    assert client.put("/v1/items/nothing").status_code == 404


def test_a_user_is_forgotten(client):
    leaver = f"leaver-{time.time_ns()}"
    event = {
        "event_id": leaver,
        "user_id": leaver,
        "item_id": "i0003",
        "type": "view",
        "timestamp": time.time(),
    }
    assert client.post("/v1/events", json={"events": [event]}).json()["accepted"] == 1
    assert client.get(f"/v1/users/{leaver}/features").json()["known"]
    answer = client.delete(f"/v1/users/{leaver}")
    assert answer.status_code == 202 and answer.json()["removed"]["event log"] == 1
    assert not client.get(f"/v1/users/{leaver}/features").json()["known"]
    assert "unknown_user" in recommend(client, leaver, k=3)["degraded"]
    again = client.post("/v1/events", json={"events": [event | {"event_id": f"{leaver}-2"}]}).json()
    assert again["accepted"] == 0 and "erased" in again["rejected"][0]["reason"]


@pytest.mark.parametrize(
    "body", [{}, {"user_id": ""}, {"user_id": "u", "k": 0}, {"user_id": "u", "unknown": 1}, [1]]
)
def test_bad_requests_are_problem_details(client, body):
    answer = client.post("/v1/recommendations", json=body)
    assert answer.status_code == 422
    assert set(answer.json()) == {"type", "title", "status", "detail"}


def test_operations(client, served):
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz").json()
    assert (ready["release"], ready["online_store"]) == (served.release.name, True)
    assert (ready["lost"], ready["status"]) == ([], "ready")
    text = client.get("/metrics").text
    assert f'funnel_release_info{{release="{served.release.name}"}} 1.0' in text
    assert "funnel_stage_seconds_bucket" in text
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/recommendations", "/v1/events", "/healthz", "/readyz", "/metrics"} <= set(paths)


def test_redis_gone_is_a_word_and_not_an_error(copied, user):
    run_materialize(copied)
    process, client = start_server(copied)
    assert recommend(client, user, k=20)["degraded"] == []
    with redis.Redis(unix_socket_path=str(socket_path(copied.redis))) as server:
        pid = server.info("server")["process_id"]
    os.kill(pid, signal.SIGKILL)
    for _ in range(3):
        answer = recommend(client, user, k=20)
        assert len(ids(answer)) == 20
        assert "online_store_unavailable" in answer["degraded"]
    event = {
        "event_id": "e",
        "user_id": "u",
        "item_id": "i0001",
        "type": "view",
        "timestamp": time.time(),
    }
    refused = client.post("/v1/events", json={"events": [event]})
    assert refused.status_code == 503 and "retry-after" in refused.headers

    def seen_down() -> bool:  # it is started again within a second or so
        with (
            suppress(redis.RedisError),
            redis.Redis(unix_socket_path=str(socket_path(copied.redis))) as server,
        ):
            os.kill(server.info("server")["process_id"], signal.SIGKILL)
        return client.get("/readyz").json()["online_store"] is False

    wait_until(seen_down, patience_s=30)
    stop(process)


def test_a_damaged_release_is_refused(copied, tmp_path):
    release = (copied.releases / "current").resolve()
    manifest = json.loads((release / "manifest.json").read_text())
    victim = release / "item_vectors.npy"
    assert victim.name in manifest["files"]
    victim.write_bytes(victim.read_bytes()[:-1])
    code, said = forked.run(
        forked.command, "serve", "--home", copied.root, out=tmp_path / "log", timeout=60
    )
    assert code != 0
    assert "item_vectors.npy is not what was released" in said


@pytest.mark.parametrize(
    ("count", "query", "says"),
    [
        (1_000, {"k": 21}, "ask for 21000 items in all; 20000 is the limit"),
        (41, {"k": 500}, "ask for 20500 items in all"),
        (51, {"k": 1, "explain": True}, "51 requests ask for explanations; 50 is the limit"),
    ],
)
def test_a_batch_may_not_cost_minutes(client, count, query, says):
    body = {"requests": [{"user_id": f"u{n}", **query} for n in range(count)]}
    answer = client.post("/v1/recommendations:batch", json=body)
    assert answer.status_code == 422 and says in answer.json()["detail"]


def test_a_batch_within_the_limits_is_answered(client):
    requests = [{"user_id": f"u{n}", "k": 3, "explain": n < 50} for n in range(60)]
    answer = client.post("/v1/recommendations:batch", json={"requests": requests})
    shown = answer.json()["responses"]
    assert [len(ids(one)) for one in shown] == [3] * 60
    assert ["filtered" in one for one in shown] == [True] * 50 + [False] * 10


@pytest.mark.parametrize(
    "body",
    [
        b"{" + b",".join(b'"key%d": 1' % n for n in range(5_000)) + b"}",
        b'{"user_id": "u1", "' + b"k" * 50_000 + b'": 1}',
        b'{"user_id": "u1", "exclude": [' + b"1," * 5_000 + b"1]}",
        b'{"user_id": "u1", "filters": {"price": {"min": 5, "max": NaN}}}',
        b'{"user_id": "u1", "k": Infinity}',
        b'{"user_id": "\\ud800"}',
    ],
    ids=["many keys", "a long key", "many errors", "NaN", "infinity", "half a character"],
)
def test_an_error_is_said_in_a_few_words(client, body):
    headers = {"content-type": "application/json"}
    answer = client.post("/v1/recommendations", content=body, headers=headers)
    assert answer.status_code == 422
    assert len(answer.content) < 10_000


@pytest.mark.parametrize("id_", ["%FF", "u%C3", "%ED%A0%80", ""])
def test_a_path_that_names_nobody_is_refused(client, id_):
    for method, path in (("DELETE", "users"), ("DELETE", "items"), ("PUT", "items")):
        assert client.request(method, f"/v1/{path}/{id_}").status_code in (404, 405, 422)
    assert client.get(f"/v1/users/{id_}/features").status_code in (404, 422)


def test_removing_what_nobody_knows_changes_nothing(client):
    answer = client.delete("/v1/items/nothing-like-it")
    assert answer.status_code == 404 and "nothing-like-it" in answer.json()["detail"]


@pytest.mark.parametrize("where", ["type", "user_id", "event_id", "timestamp", "a\ud800key"])
def test_half_a_character_is_one_events_fault(client, where):
    """The events beside it are taken."""
    event = {
        "event_id": f"half-{time.time_ns()}", "user_id": "u0001", "item_id": "i0003",
        "type": "view", "timestamp": time.time(),
    }  # fmt: skip
    bad = event | {"event_id": f"bad-{time.time_ns()}", where: "\ud800"}
    body = json.dumps({"events": [bad, event]})
    answer = client.post("/v1/events", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 202
    assert answer.json()["accepted"] == 1
    assert [one["index"] for one in answer.json()["rejected"]] == [0]
