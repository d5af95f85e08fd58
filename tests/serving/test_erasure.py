"""An erased user is refused from then on, and gone from Redis.

That holds whatever was flushed, restarted or killed.
"""

import json
import os
import stat

import pytest
from prometheus_client import Counter

from feature_repo.erased import LISTED, ErasedUsers
from feature_repo.events.log_names import DEAD_LETTERS, LOG, batch_key, recent_key
from feature_repo.files import read_json
from feature_repo.stores.feature_store import feature_store
from feature_repo.stores.online_store import row_key
from serving.api.schemas import RecommendationRequest
from serving.erasure import Erasure
from serving.event_log.redis_stream import RedisStreamLog
from serving.intake import Intake
from serving.online.features import OnlineStoreUnavailable
from tests.support.event_log import client, event, in_a_process_that_is_killed, kill_redis
from tests.support.tiny_release import SPEC

STRANGE = ['o"brien', "zoë:1", "a b,c", "back\\slash"]


@pytest.fixture
def erasure(workspace):
    with client(workspace) as server:
        server.flushall()
    return Erasure(workspace)


def intake(workspace, erasure, log=None):
    counter = Counter("events", "", ["outcome"], registry=None)
    return Intake(log or RedisStreamLog(workspace), SPEC, counter, erasure)


def kept(workspace):
    """Return everything that Redis has, keys and values, as bytes.

    The ids of events and the list left out.
    """
    with client(workspace) as server:
        keys = [
            key
            for key in server.scan_iter()
            if not key.startswith((b"funnel:ids:", LISTED.encode()))
        ]
        values = [server.xrange(k) if server.type(k) == b"stream" else server.dump(k) for k in keys]
        return repr(keys) + repr(values)


def users_in_log(workspace, stream=LOG, field=b"event"):
    with client(workspace) as server:
        return [json.loads(fields[field])["user_id"] for _, fields in server.xrange(stream)]


def fill(workspace, erasure, users):
    config = feature_store(workspace).config
    answer = intake(workspace, erasure).accept([event(user) for user in users for _ in range(3)])
    assert answer.accepted == 3 * len(users)
    with client(workspace) as server:
        for user in users:
            server.hset(row_key(config, "user_id", user), "f", "v")
            server.set(batch_key(user), json.dumps({"items": []}))
            server.xadd(
                DEAD_LETTERS,
                {"reason": "none", "entry": json.dumps({"user_id": user, "type": "stare"})},
            )


REMOVED = {
    "online features": 1,
    "recent events": 1,
    "lists made by batch": 1,
    "event log": 3,
    "dead letters": 1,
}


def test_everything_of_the_user_goes_and_nothing_of_others(workspace, erasure):
    fill(workspace, erasure, ["gone", "gone2", "go"])
    answer = erasure.erase("gone")
    assert answer.removed == REMOVED
    assert users_in_log(workspace) == ["gone2"] * 3 + ["go"] * 3
    assert users_in_log(workspace, DEAD_LETTERS, b"entry") == ["gone2", "go"]
    with client(workspace) as server:
        assert server.exists(recent_key("gone2"), recent_key("go")) == 2
    assert '"gone"' not in kept(workspace)
    assert erasure.erase("gone").removed == dict.fromkeys(answer.removed, 0)


@pytest.mark.parametrize("user", STRANGE)
def test_ids_that_json_writes_in_its_own_way(workspace, erasure, user):
    fill(workspace, erasure, [user, "other"])
    assert erasure.erase(user).removed == REMOVED
    assert set(users_in_log(workspace)) == {"other"}


def test_a_long_log_is_searched_to_its_end(workspace, erasure):
    log = RedisStreamLog(workspace)
    for start in range(0, 2_600, 200):
        log.append([event("far" if n % 100 == 0 else "near") for n in range(start, start + 200)])
    assert erasure.erase("far").removed["event log"] == 26
    assert set(users_in_log(workspace)) == {"near"}


def test_a_replay_is_refused_with_the_reason(workspace, erasure):
    events = [event("back"), event("stays"), {"event_id": "x"}, event("back")]
    takes = intake(workspace, erasure)
    assert takes.accept(events).accepted == 3
    erasure.erase("back")
    answer = takes.accept(events)
    assert (answer.accepted, answer.duplicates) == (0, 1)
    assert [(one.index, one.reason) for one in answer.rejected if one.index != 2] == [
        (0, "user was erased"), (3, "user was erased")
    ]  # fmt: skip
    assert [one.index for one in answer.rejected] == [0, 2, 3]
    assert users_in_log(workspace) == ["stays"]


def test_a_flushed_redis_and_a_restart_forget_nothing(workspace, erasure):
    number = erasure.erase("never-again").erasure
    with client(workspace) as server:
        server.flushall()
        again = Erasure(workspace)
        assert (
            intake(workspace, again).accept([event("never-again")]).rejected[0].reason
            == "user was erased"
        )
        assert number.encode() in server.smembers(LISTED)
    assert again.served_as("never-again") == "" and again.served_as("somebody") == "somebody"
    requests = [RecommendationRequest(user_id=user, k=3) for user in ("somebody", "never-again")]
    assert [(one.user_id, one.k) for one in again.anonymous(requests)] == [("somebody", 3), ("", 3)]


def test_the_list_names_nobody(erasure):
    number = erasure.erase("secret-person").erasure
    for path in erasure.erased.folder.iterdir():
        assert b"secret-person" not in path.name.encode() + path.read_bytes()
    assert stat.S_IMODE((erasure.erased.folder / "key").stat().st_mode) == 0o600
    proof = read_json(erasure.erased.proof(number))
    assert proof["state"] == "pending" and proof["digest"].startswith(number)


def test_other_processes_know_at_once_and_others_with_the_same_redis_in_a_second(
    workspace, erasure, tmp_path
):
    beside, files_only = Erasure(workspace), ErasedUsers(workspace)
    assert beside.served_as("moved-out") == "moved-out" and not files_only.among(["moved-out"])
    erasure.erase("moved-out")
    assert beside.served_as("moved-out") == "" and files_only.among(["moved-out"]) == {"moved-out"}
    (tmp_path / "erasures").mkdir()
    (tmp_path / "erasures" / "key").write_bytes((erasure.erased.folder / "key").read_bytes())
    elsewhere = ErasedUsers(type(workspace)(tmp_path), client(workspace))
    assert elsewhere.among(["moved-out", "stays"]) == {"moved-out"}


def test_an_event_between_the_check_and_the_append_is_taken_back(workspace, erasure):
    class Late(RedisStreamLog):
        def append(self, events):
            erasure.erase("late")
            return super().append(events)

    intake(workspace, erasure, Late(workspace)).accept([event("late"), event("early")])
    assert users_in_log(workspace) == ["early"]
    assert "late" not in kept(workspace)


def test_killed_after_the_list_nothing_is_served_and_the_next_call_finishes(workspace, erasure):
    fill(workspace, erasure, ["half"])

    def work():
        Erasure.forget = lambda *_: os.kill(os.getpid(), 9)
        Erasure(workspace).erase("half")

    in_a_process_that_is_killed(work)
    assert erasure.served_as("half") == ""
    assert (
        intake(workspace, erasure).accept([event("half")]).rejected[0].reason == "user was erased"
    )
    assert erasure.erase("half").removed["event log"] == 3


def test_without_redis_the_user_is_on_the_list_all_the_same(workspace, erasure):
    fill(workspace, erasure, ["lost"])
    kill_redis(workspace)
    with pytest.raises(OnlineStoreUnavailable, match="redis.sock|(?i:connect)"):
        erasure.erase("lost")
    assert erasure.served_as("lost") == ""
    assert Erasure(workspace).erase("lost").removed["event log"] == 3


def test_rows_of_text_are_matched_by_their_column_or_else_by_every_word(erasure):
    erasure.erase("42")
    named = erasure.erased.named_in
    assert named('{"user": " 42", "item": "7"}', ["user"]) == {"42"}
    assert named('{"user": 42, "item": "7"}', ["user"]) == {"42"}
    assert not named('{"user": "7", "item": "42"}', ["user"])
    assert named('7,"42",broken', ["user"]) == {"42"}
    assert named("42::7::x", ["user"]) == {"42"} and not named("142 421", ["user"])
