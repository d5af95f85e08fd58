"""Items that a list is filled with when its candidates are too few: the most popular first.

A request looks at a bounded number of them, so that an answer of last resort stays cheap in a
catalogue of any size.
"""

from __future__ import annotations

import numpy as np

from feature_repo import columns as c
from feature_repo.arrays import Int32Array
from serving.recommender.candidates import FEW, ItemFilter, top
from serving.recommender.item_table import ItemTable

SCANNED = FEW
"""Items that a request looks at, beside as many as it asks for, excludes and has seen."""

_ORDERED = 32_768
_MEMO = "popular order"


def popular_order(items: ItemTable, time: float) -> Int32Array:
    """Return the codes of up to 32,768 items by their events of a month, best first, int32 ``[n]``.

    Items that are no longer available at ``time`` come last. Computed once for a table, whose
    later requests may be of other times: availability is to be checked again.
    """
    order: Int32Array | None = items.memo.get(_MEMO)
    if order is None:
        month = items.count(c.EVENTS_30D)
        month = np.where(items.available_until <= time, -1.0, month)
        month[0] = -np.inf
        order = items.memo[_MEMO] = top(month, _ORDERED)
    return order


def fillers(
    items: ItemTable, prefilter: ItemFilter | None, time: float, removable: int
) -> Int32Array:
    """Return the codes of the items that a list may be filled with, int32 ``[n]``.

    All items of a narrow prefilter; else the most popular ones.

    Args:
        items: the item table.
        prefilter: the items that the request's rules leave; None: most of them.
        time: of the request, epoch seconds.
        removable: how many items the request asks for, excludes and has seen.

    """
    if prefilter is not None and prefilter.codes is not None:
        return prefilter.codes
    return popular_order(items, time)[: SCANNED + removable]
