"""Keys in their file, and a ring that follows it."""

import hashlib
import json
import logging
import multiprocessing
import os
import time
from datetime import UTC, datetime, timedelta

import pytest

from serving.http import keys as keys_module
from serving.http.keys import BadKeys, KeyRing, Scope, UnknownKey, create, read_keys, revoke, rotate
from tests.support.waiting import wait_until


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w" / "keys.json"


def soon(condition):
    """Wait for what a ring finds out within a second or so."""
    wait_until(condition, 5)


def in_(**time_left):
    return datetime.now(UTC) + timedelta(**time_left)


def test_the_file_has_the_hash_and_not_the_key(path):
    text, key = create(
        path, "web", [Scope.RECOMMEND, Scope.EVENTS], expires_at=in_(days=1), rate_limit=5.0
    )
    prefix, key_id, secret = text.split("_", 2)
    assert (prefix, key_id) == ("fk", key.id)
    assert len(key_id) == 8 and len(secret) == 43
    [kept] = json.loads(path.read_text())["keys"]
    assert kept.keys() == {
        "id",
        "sha256",
        "name",
        "scopes",
        "created_at",
        "expires_at",
        "rate_limit",
    }
    assert kept["sha256"] == hashlib.sha256(secret.encode()).hexdigest()
    assert (
        secret not in path.read_text()
        and secret not in repr(key)
        and kept["sha256"] not in repr(key)
    )
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_keys(path) == [key]


def test_the_mask_of_the_process_is_left_alone(path):
    before = os.umask(0o022)
    try:
        create(path, "web", [Scope.EVENTS])
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_a_ring_finds_valid_keys_only(path):
    text, key = create(path, "web", [Scope.EVENTS])
    other = create(path, "other", [Scope.EVENTS]).text
    over = create(path, "over", [Scope.EVENTS], expires_at=in_(seconds=-1)).text
    ring = KeyRing(path)
    assert ring.find(text) == key
    prefix, key_id, secret = text.split("_", 2)
    swapped = f"fk_{key_id}_{other.split('_', 2)[2]}"
    wrong = [
        "",
        "fk",
        "fk__",
        f"fk_{key_id}_",
        f"fk_00000000_{secret}",
        f"gk_{key_id}_{secret}",
        f"{key_id}_{secret}",
    ]
    for bad in [
        *wrong,
        swapped,
        over,
        text[:-1],
        text + "x",
        text.upper(),
        f"fk_{key_id}_{key.sha256}",
        "fk_é_👻",
    ]:
        assert ring.find(bad) is None, bad


def test_a_key_ends_in_time(path):
    text = create(path, "web", [Scope.EVENTS], expires_at=in_(seconds=1)).text
    ring = KeyRing(path)
    assert ring.find(text)
    soon(lambda: ring.find(text) is None)


def test_a_running_ring_learns_of_new_revoked_and_rotated_keys(path):
    first, key = create(path, "web", [Scope.EVENTS], rate_limit=3.0)
    ring = KeyRing(path, check_every_s=0.05)
    second = create(path, "app", [Scope.RECOMMEND]).text
    soon(lambda: ring.find(second))
    third, replaced = rotate(path, key.id, timedelta(seconds=1.5))
    assert (replaced.name, replaced.scopes, replaced.rate_limit, replaced.expires_at) == (
        "web",
        key.scopes,
        3.0,
        None,
    )
    soon(lambda: ring.find(third))
    assert ring.find(first), "the old key is valid for the time of grace"
    soon(lambda: ring.find(first) is None)
    revoke(path, replaced.id)
    soon(lambda: ring.find(third) is None)
    assert ring.find(second)


def test_a_rotated_key_keeps_its_lifetime_and_the_old_one_never_gains_time(path):
    key = create(path, "web", [Scope.EVENTS], expires_at=in_(hours=2)).key
    new = rotate(path, key.id).key
    assert new.expires_at - new.created_at == pytest.approx(
        timedelta(hours=2), abs=timedelta(seconds=5)
    )
    assert {k.id: k.expires_at for k in read_keys(path)}[key.id] == key.expires_at


def test_the_file_is_looked_at_once_a_second_at_most(path):
    text, key = create(path, "web", [Scope.EVENTS])
    ring = KeyRing(path)
    revoke(path, key.id)
    assert ring.find(text), "a second has not passed"
    soon(lambda: ring.find(text) is None)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text(path.read_text()[:-20]),
        lambda path: path.write_text('{"keys": [{"id": "12345678"}]}'),
        lambda path: path.write_text(path.read_text().replace('"web"', '"web", "surprise": 1')),
        lambda path: path.write_text(path.read_text().replace('"events"', '"everything"')),
        lambda path: path.write_text(
            json.dumps({"keys": json.loads(path.read_text())["keys"] * 2})
        ),
        lambda path: path.unlink(),
    ],
    ids=["torn", "incomplete", "unknown field", "unknown scope", "twice", "gone"],
)
def test_a_damaged_file_changes_nothing_and_is_not_started_with(path, damage, caplog):
    text, key = create(path, "web", [Scope.EVENTS])
    ring = KeyRing(path, check_every_s=0.05)
    damage(path)
    with pytest.raises(BadKeys, match="keys.json") as refused:
        KeyRing(path)
    soon(lambda: ring.find(text) and caplog.records)
    time.sleep(0.1)
    assert ring.find(text), "said once, not at every look"
    [record] = caplog.records
    assert record.levelno == logging.ERROR and "stay as they were" in record.getMessage()
    assert key.sha256 not in caplog.text + str(refused.value)


def test_a_revoked_key_stays_revoked_in_a_worker_that_starts_when_the_file_is_damaged(path, caplog):
    """The worker is a fork of a parent whose ring knows the keys of its own start."""
    revoked, key = create(path, "web", [Scope.EVENTS])
    other = create(path, "app", [Scope.EVENTS]).text
    ring = KeyRing(path, check_every_s=0.05)
    revoke(path, key.id)
    whole = path.read_text()
    path.write_text(whole[:-20])

    child = os.fork()
    if child == 0:
        refused = ring.find(revoked) is None and ring.find(other) is None
        path.write_text(whole)
        repaired = waited_for(lambda: ring.find(other)) and ring.find(revoked) is None
        said = "no API key can be confirmed, so all are refused" in caplog.text
        os._exit(0 if refused and repaired and said else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_worker_that_starts_with_a_whole_file_needs_no_look_of_its_parent(path):
    revoked, key = create(path, "web", [Scope.EVENTS])
    other = create(path, "app", [Scope.EVENTS]).text
    ring = KeyRing(path)
    revoke(path, key.id)
    child = os.fork()
    if child == 0:
        os._exit(0 if ring.find(revoked) is None and ring.find(other) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_keys_that_nobody_has_confirmed_for_long_do_not_outlast_damage(path, monkeypatch, caplog):
    revoked, key = create(path, "web", [Scope.EVENTS])
    ring = KeyRing(path, check_every_s=0.0)
    assert ring.find(revoked)
    revoke(path, key.id)
    path.write_text("{")
    monkeypatch.setattr(keys_module, "_TRUSTED_S", 0.0)  # as if no request had come for a while
    assert ring.find(revoked) is None
    assert "no API key can be confirmed" in caplog.text


def waited_for(condition):
    deadline = time.monotonic() + 10
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def test_a_damaged_file_is_not_written_over(path):
    create(path, "web", [Scope.EVENTS])
    path.write_text("{")
    for change in (lambda: create(path, "app", [Scope.EVENTS]), lambda: revoke(path, "12345678")):
        with pytest.raises(BadKeys, match=path.name):
            change()
    assert path.read_text() == "{"


def test_an_unknown_key_is_not_repeated(path):
    text = create(path, "web", [Scope.EVENTS]).text
    for change in (revoke, rotate):
        with pytest.raises(UnknownKey) as unknown:
            change(path, text)
        assert text.split("_", 2)[2] not in str(unknown.value)


def make_five(path):
    for number in range(5):
        create(path, f"key {number}", [Scope.EVENTS])


def test_writers_at_the_same_time_lose_nothing(path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=make_five, args=(path,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    make_five(path)
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert len(read_keys(path)) == 15
