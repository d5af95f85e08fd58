"""Items added or removed since the release, kept in Redis and followed by every server.

No release undoes them.
"""

from __future__ import annotations

import time

from feature_repo.cell_values import stands_for_nothing
from feature_repo.workspace import Workspace
from serving.api.schemas import ItemUpdate
from serving.live_items.added import AddedItems, BadItem, NoSpareRow, ReleasedItem
from serving.live_items.removed import RemovedItems
from serving.recommender.item_table import ItemTable
from serving.releases.delta import AddedItem, attribute_problems
from serving.releases.release import Release, with_added

RETENTION_S = 30 * 86_400.0
"""How long Redis keeps an added item that no server needs."""


class ItemChanges:
    """Added and removed items, as they were when Redis was last asked."""

    def __init__(self, workspace: Workspace) -> None:
        self._removed = RemovedItems(workspace)
        self._added = AddedItems(workspace)
        self._removed_ids: set[str] = set()
        self._added_items: dict[str, AddedItem] = {}

    def poll(self) -> bool:
        """Ask Redis, and return whether something has changed since the last call."""
        removed = self._removed.poll()
        added = self._added.poll()
        if removed is not None:
            self._removed_ids = removed
        if added is not None:
            self._added_items = added
        return removed is not None or added is not None

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
        """Return whether the item was added, removed since or not."""
        return item_id in self._added_items

    def remove(self, item_id: str) -> bool:
        """Remove an item; return whether it was not removed already.

        Raises:
            OnlineStoreUnavailable: Redis did not answer; repeating the call is safe.

        """
        return self._removed.remove(item_id)

    def restore(self, item_id: str) -> bool:
        """Restore a removed item; return whether it was removed.

        Raises:
            OnlineStoreUnavailable: Redis did not answer; repeating the call is safe.

        """
        return self._removed.restore(item_id)

    def add(self, item_id: str, item: ItemUpdate, loaded: Release) -> bool:
        """Add an item or change an added one; return whether that changed anything.

        Raises:
            ReleasedItem: ``loaded`` has the item itself.
            BadItem: its attributes do not fit the release's items.
            NoSpareRow: ``loaded`` has no row left for it.
            OnlineStoreUnavailable: Redis did not answer; repeating the call is safe.

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
        return self._added.add(
            item_id,
            item.attributes,
            available_from=item.available_from,
            available_until=item.available_until,
            now=time.time(),
        )
