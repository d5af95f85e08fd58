"""Removed and added items outlive a Redis that was emptied."""

from __future__ import annotations

import json
import os
import stat
from math import inf
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.stores.feature_store import redis_client
from feature_repo.workspace import Workspace
from serving.api.schemas import ItemUpdate
from serving.live_items.changes import ItemChanges
from serving.live_items.journal import Change, ChangeJournal, Decisions, JournalFailed
from serving.releases.release import Release, load_release
from tests.support.tiny_release import ITEMS, Tiny, item_id

WAR = ItemUpdate(attributes={"genre": "War"})


@pytest.fixture
def emptied(registered_workspace: Workspace) -> Workspace:
    """A working folder in whose Redis nothing was changed."""
    with redis_client(registered_workspace) as redis:
        for key in redis.scan_iter("funnel:items:*"):
            redis.delete(key)
    journal(registered_workspace).unlink(missing_ok=True)
    return registered_workspace


def journal(workspace: Workspace) -> Path:
    return workspace.root / "serving" / "item-changes.jsonl"


def flush(workspace: Workspace) -> None:
    """Empty Redis, as FLUSHALL does or a replica that had nothing and was promoted."""
    with redis_client(workspace) as redis:
        redis.flushall()


@pytest.fixture
def release(tiny: Tiny) -> Release:
    """The release, whose spare rows nobody has used."""
    return load_release(tiny.folder)


def shown(changes: ItemChanges, loaded: Release) -> tuple[set[str], set[str]]:
    """Return the ids of added items, and of removed items of the release."""
    release = changes.apply_to(loaded)
    items = changes.without_removed(release, release.items)
    added = set(release.codec.items.values[ITEMS:])
    gone = {item_id(code) for code in range(1, ITEMS + 1) if items.available_until[code] == -inf}
    return added, gone


def follow(changes: ItemChanges) -> None:
    """Poll as a server does twice a second."""
    for _ in range(3):
        changes.poll()


def test_what_was_decided_comes_back_and_stays_in_force_meanwhile(
    emptied: Workspace, release: Release
) -> None:
    one, other = ItemChanges(emptied), ItemChanges(emptied)
    assert one.remove("i1") and one.remove("i2") and one.restore("i2")
    assert one.add("new", WAR, release) and one.add("newer", WAR, release)
    assert one.remove("newer")
    expected = ({"new"}, {"i1"})
    for changes in (one, other):
        follow(changes)
        assert shown(changes, release) == expected

    flush(emptied)
    one.poll()
    assert shown(one, release) == expected, "it is in force before it is back in Redis"
    for changes in (one, other, fresh := ItemChanges(emptied)):
        follow(changes)
        assert shown(changes, release) == expected
    assert not fresh.remove("i1"), "Redis has it again"


@pytest.mark.parametrize("before", range(1, 5))
def test_a_change_right_after_the_loss_is_seen_by_all(
    emptied: Workspace, release: Release, before: int
) -> None:
    """A version that began again could be one that a server has seen already."""
    one, other = ItemChanges(emptied), ItemChanges(emptied)
    for number in range(before):
        one.remove(f"i{number + 1}")
    follow(other)
    flush(emptied)
    for number in range(4):
        assert one.remove(f"i1{number}")
        follow(other)
        gone = {f"i{n + 1}" for n in range(before)} | {f"i1{n}" for n in range(number + 1)}
        assert shown(other, release)[1] == gone


def test_changes_from_before_there_was_a_journal_are_written_into_it(
    emptied: Workspace, release: Release
) -> None:
    one = ItemChanges(emptied)
    one.remove("i3")
    one.add("new", WAR, release)
    journal(emptied).unlink()
    follow(ItemChanges(emptied))
    flush(emptied)
    again = ItemChanges(emptied)
    follow(again)
    assert shown(again, release) == ({"new"}, {"i3"})


def test_a_change_that_cannot_be_written_is_no_success(emptied: Workspace) -> None:
    changes = ItemChanges(emptied)
    changes.remove("i4")
    journal(emptied).unlink()
    journal(emptied).mkdir()  # no file can be written there, whoever asks
    try:
        with pytest.raises(JournalFailed, match="could not be written to .*item-changes.jsonl"):
            changes.remove("i5")
    finally:
        journal(emptied).rmdir()
    assert not changes.remove("i5"), "Redis had it; now the journal has it too"
    assert "i5" in ChangeJournal(journal(emptied)).decisions().removed


CHANGES = st.lists(
    st.builds(
        lambda action, number: Change(
            action=action, item_id=f"i\ud7ff{number}", at=float(number), item="{}"
        ),
        st.sampled_from(["add", "remove", "restore"]),
        st.integers(0, 4),
    ),
    max_size=20,
)


@given(CHANGES)
def test_the_fewest_changes_lead_to_the_same(changes: list[Change]) -> None:
    whole, short = Decisions(), Decisions()
    for change in changes:
        whole.apply(change)
    for change in whole.changes():
        short.apply(change)
    assert short.removed == whole.removed
    assert short.added.keys() == whole.added.keys()


def test_a_line_that_was_cut_off_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "changes.jsonl"
    written = ChangeJournal(path)
    for number in range(3):
        written.append({"action": "remove", "item_id": f"i{number}", "at": 1.0})
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for cut in range(1, len(last) + 1):
        path.write_bytes(whole[: len(whole) - cut])
        written.append({"action": "remove", "item_id": "next", "at": 2.0})
        expected = {"i0", "i1", "next"} | ({"i2"} if cut == 1 else set())
        assert written.decisions().removed == expected
    assert json.loads(path.read_bytes().splitlines()[-1])["item_id"] == "next"
    assert stat.S_ISREG(os.stat(path).st_mode)
