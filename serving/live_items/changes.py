"""Items added or removed since the release, kept in Redis and followed by every server.

No release undoes them. Each change is also in a journal on disk, from which they come back when
Redis has lost them.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress

from feature_repo.cell_values import stands_for_nothing
from feature_repo.workspace import Workspace
from serving.api.schemas import ItemUpdate
from serving.live_items.added import (
    AddedItems,
    BadItem,
    NoSpareRow,
    ReleasedItem,
    item_body,
)
from serving.live_items.journal import ChangeJournal, Decisions
from serving.live_items.removed import RemovedItems
from serving.online.features import OnlineStoreUnavailable
from serving.recommender.item_table import ItemTable
from serving.releases.delta import AddedItem, attribute_problems
from serving.releases.release import Release, with_added

_log = logging.getLogger(__name__)

RETENTION_S = 30 * 86_400.0
"""How long Redis keeps an added item that no server needs."""


class ItemChanges:
    """Added and removed items, as they were when Redis was last asked."""

    def __init__(self, workspace: Workspace) -> None:
        self._removed = RemovedItems(workspace)
        self._added = AddedItems(workspace)
        self._journal = ChangeJournal(workspace.root / "serving" / "item-changes.jsonl")
        self._removed_ids: set[str] = set()
        self._added_items: dict[str, AddedItem] = {}

    def poll(self) -> bool:
        """Ask Redis, and return whether something has changed since the last call."""
        removed = self._removed.poll()
        added = self._added.poll()
        if self._lost() and removed is None and added is None:
            with suppress(OnlineStoreUnavailable):  # the next call tries again
                self.bring_back()
        if removed is not None:
            self._removed_ids = removed
        if added is not None:
            self._added_items = added
        if self._journal.empty and (self._removed_ids or self._added_items):
            self._journal.begin(self._known())  # changes from before there was a journal
        return removed is not None or added is not None

    def _known(self) -> Decisions:
        added = {
            item_id: (
                item.added_at,
                item_body(item.attributes, item.available_from, item.available_until),
            )
            for item_id, item in self._added_items.items()
        }
        return Decisions(set(self._removed_ids), added)

    def bring_back(self) -> None:
        """Write the changes of the journal into a Redis that has lost them.

        Raises:
            OnlineStoreUnavailable: Redis did not answer; repeating the call is safe.

        """
        decisions = self._journal.decisions()
        _log.warning(
            "Redis has lost the item changes; the journal brings %d removed and %d added ones back",
            len(decisions.removed),
            len(decisions.added),
        )
        self._added.bring_back(decisions)

    def _lost(self) -> bool:
        """Return whether Redis has none of the changes that the journal has."""
        return self._removed.missing and self._added.missing and not self._journal.empty

    def _prepare(self) -> None:
        """Bring back what Redis has lost, before it is changed."""
        self._removed.check()
        self._added.check()
        if self._lost():
            self.bring_back()

    def apply_to(self, loaded: Release) -> Release:
        """Return a release, as it was loaded, with the added items."""
        added = {
            item_id: item
            for item_id, item in self._added_items.items()
            if item_id not in self._removed_ids
        }
        return with_added(loaded, added)

    def tidy(self, loaded: Release, now: float) -> None:
        """Delete items from Redis that were added long ago and are removed or in the release.

        Servers read all added items at once, so these must stay few. A rollback to a release from
        before that time has its items only.
        """
        old = [
            item_id
            for item_id, item in self._added_items.items()
            if item.added_at < now - RETENTION_S
        ]
        self._added.delete(
            [
                item_id
                for item_id in old
                if item_id in self._removed_ids or loaded.codec.items.code(item_id)
            ]
        )

    def without_removed(self, release: Release, items: ItemTable) -> ItemTable:
        """Return a release's item table without the removed items.

        An item that was added stays where the release has it from the log alone, which ends its
        availability: whoever added it wants it shown.
        """
        codes = release.codec.items.encode(list(self._removed_ids))
        listed = len(release.items) - release.items.added
        ends = {
            code: item.available_until
            for name, item in self._added_items.items()
            if 0 < (code := release.codec.items.code(name)) < listed
            and release.items.known_by_log_only(code)
        }
        return items.without(codes[codes > 0], release.items, ends)

    def knows(self, item_id: str) -> bool:
        """Return whether the item was ever added or removed."""
        return item_id in self._added_items or item_id in self._removed_ids

    def remove(self, item_id: str) -> bool:
        """Remove an item; return whether it was not removed already.

        Raises:
            OnlineStoreUnavailable: Redis did not answer; repeating the call is safe.
            JournalFailed: the change could not be written to disk; repeating the call is safe.

        """
        self._prepare()
        changed = self._removed.remove(item_id)
        self._journal.append({"action": "remove", "item_id": item_id, "at": time.time()})
        return changed

    def restore(self, item_id: str) -> bool:
        """Restore a removed item; return whether it was removed.

        Raises:
            OnlineStoreUnavailable: Redis did not answer; repeating the call is safe.
            JournalFailed: the change could not be written to disk; repeating the call is safe.

        """
        self._prepare()
        changed = self._removed.restore(item_id)
        self._journal.append({"action": "restore", "item_id": item_id, "at": time.time()})
        return changed

    def add(self, item_id: str, item: ItemUpdate, loaded: Release) -> bool:
        """Add an item or change an added one; return whether that changed anything.

        Raises:
            ReleasedItem: ``loaded`` has the item itself.
            BadItem: its attributes do not fit the release's items.
            NoSpareRow: ``loaded`` has no row left for it.
            OnlineStoreUnavailable: Redis did not answer; repeating the call is safe.
            JournalFailed: the change could not be written to disk; repeating the call is safe.

        """
        if loaded.codec.items.code(item_id):
            raise ReleasedItem(item_id)
        if stands_for_nothing(item_id):
            raise BadItem(f"{item_id!r} stands for a missing id")
        problems = attribute_problems(item.attributes, loaded.codec.spec.item_attributes)
        if problems:
            raise BadItem("; ".join(f"{name}: {problem}" for name, problem in problems.items()))
        if not loaded.retrieval.delta.has_row(item_id):
            raise NoSpareRow(loaded.retrieval.delta.spare)
        self._prepare()
        now = time.time()
        changed = self._added.add(
            item_id,
            item.attributes,
            available_from=item.available_from,
            available_until=item.available_until,
            now=now,
        )
        body = item_body(item.attributes, item.available_from, item.available_until)
        self._journal.append({"action": "add", "item_id": item_id, "at": now, "item": body})
        return changed
