"""What has changed among the items since the release: kept in Redis, followed by every server, undone by no release."""

from __future__ import annotations

import time

from feature_repo.workspace import Workspace
from serving.api.schemas import ItemUpdate
from serving.live_items.added import AddedItems, BadItem, NoSpareRow, ReleasedItem
from serving.live_items.removed import RemovedItems
from serving.recommender.item_table import ItemTable
from serving.releases.delta import AddedItem, misfits
from serving.releases.release import Release, with_added

KEPT_S = 30 * 86_400.0
"""How long an added item is kept that no server needs."""


class ItemChanges:
    """Added and removed items, as they were when Redis was last asked."""

    def __init__(self, workspace: Workspace) -> None:
        self._removed, self._added = RemovedItems(workspace), AddedItems(workspace)
        self._gone: set[str] = set()
        self._items: dict[str, AddedItem] = {}

    def poll(self) -> bool:
        """Ask Redis, and return whether there is something else than before."""
        gone, items = self._removed.changed(), self._added.changed()
        self._gone = self._gone if gone is None else gone
        self._items = self._items if items is None else items
        return gone is not None or items is not None

    def apply_to(self, loaded: Release) -> Release:
        """Return a release, as it was loaded, with the added items."""
        return with_added(
            loaded, {name: item for name, item in self._items.items() if name not in self._gone}
        )

    def tidy(self, loaded: Release, now: float) -> None:
        """Let go of what was added long ago and has been removed, or is in the release: what is kept is read whole.

        Whoever goes back to a release of before that time goes back to its items.
        """
        old = [name for name, item in self._items.items() if item.added_at < now - KEPT_S]
        self._added.forget(
            [name for name in old if name in self._gone or loaded.codec.items.code(name)]
        )

    def remaining(self, release: Release, items: ItemTable) -> ItemTable:
        """Return a release's item table without the removed items."""
        codes = release.codec.items.encode(list(self._gone))
        return items.without(codes[codes > 0], release.items)

    def knows(self, item_id: str) -> bool:
        """Return whether the item was added, removed since or not."""
        return item_id in self._items

    def remove(self, item_id: str) -> bool:
        """Remove an item and return whether it was there.

        Raises:
            OnlineStoreUnavailable: Redis did not answer; repeating the call is safe.

        """
        return self._removed.remove(item_id)

    def restore(self, item_id: str) -> bool:
        """Take a removal back and return whether there was one.

        Raises:
            OnlineStoreUnavailable: Redis did not answer; repeating the call is safe.

        """
        return self._removed.restore(item_id)

    def add(self, item_id: str, item: ItemUpdate, loaded: Release) -> bool:
        """Add an item, or change one that was added, and return whether that changed anything.

        Raises:
            ReleasedItem: ``loaded`` has the item itself.
            BadItem: its attributes do not fit the release's items.
            NoSpareRow: ``loaded`` has no place for it.
            OnlineStoreUnavailable: Redis did not answer; repeating the call is safe.

        """
        if loaded.codec.items.code(item_id):
            raise ReleasedItem(item_id)
        problems = misfits(item.attributes, loaded.codec.spec.item_attributes)
        if problems:
            raise BadItem("; ".join(f"{name}: {what}" for name, what in problems.items()))
        if not loaded.retrieval.delta.has_place(item_id):
            raise NoSpareRow(loaded.retrieval.delta.spare)
        return self._added.add(
            item_id, item.attributes, item.available_from, item.available_until, time.time()
        )
