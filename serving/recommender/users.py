"""Rows of user features, from Feast online or point in time, as the arrays that the models take."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from feature_repo import columns as c
from feature_repo.arrays import Float32Array, Float64Array, Int32Array
from feature_repo.encoding import Encoded, standardised
from feature_repo.on_demand.view import Input, OnDemandError, OnDemandView, Values
from feature_repo.request_time import SECONDS_PER_DAY, request_time_features
from ranking.rows import REQUEST_TIME, UserRows
from retrieval.towers.context import UserContext
from serving.recommender.codec import Codec, ranked_columns

_log = logging.getLogger(__name__)

Columns = Mapping[str, Sequence[Any]]
"""Feature values by name, one per request; None where missing."""


@dataclass(frozen=True)
class UserBatch:
    """``B`` requests' users: the towers' view, the ranker's view, and what the filters need.

    ``category_shares`` float32 ``[B, K]``, each user's share of positive events by category;
    ``seen[b]``: codes of the items that the user has interacted with, by event type; ``inputs``:
    what on-demand functions take of the users and their requests, by name, one value per request;
    ``missing``: features of the user tower that could not be computed.
    """

    context: UserContext
    rows: UserRows
    category_shares: Float32Array
    seen: list[dict[str, Int32Array]]
    inputs: Columns = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.context)


class UserReader:
    """Reads feature rows into a ``UserBatch`` by a release's codes."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self._counts = (*codec.user_counts, c.FIRST_EVENT_AT, c.LAST_EVENT_AT)
        self._declared = [name for _, name in codec.declared_user]
        self._inputs = codec.user_inputs
        self._width = len(codec.all_user_numeric)
        self._numeric = codec.kept(codec.all_user_numeric)
        self._categorical = codec.kept(list(codec.all_user_categorical))
        self._ranked = ranked_columns(codec.user_attributes)

    def context(self, columns: Columns, time: Float64Array) -> UserContext:
        """Return the user tower's view of ``n`` feature rows at ``time``, float64 ``[n]``."""
        attributes = self.codec.user_attributes.encode(columns, len(time))
        given, _ = with_computed(self.codec.tower_views, columns, time)
        return self._context(given, time, attributes)

    def _context(self, columns: Columns, time: Float64Array, attributes: Encoded) -> UserContext:
        codec = self.codec
        size = len(time)

        # Item codes and ages in seconds, newest first, [n, H].
        history = np.zeros((size, c.HISTORY_LENGTH), dtype=np.int32)
        ages = np.zeros((size, c.HISTORY_LENGTH), dtype=np.float32)
        code = codec.items.code
        pairs = zip(columns[c.HISTORY_ITEMS], columns[c.HISTORY_TIMES], strict=True)
        for row, (items, times) in enumerate(pairs):
            if items is None or len(items) == 0:
                continue
            codes = [code(item) for item in reversed(items[-c.HISTORY_LENGTH :])]
            history[row, : len(codes)] = codes
            ages[row, : len(codes)] = (
                time[row] - np.asarray(times[-c.HISTORY_LENGTH :], dtype=np.float64)[::-1]
            )
        numbers = codec.user_attributes.standardise(attributes.numbers)
        if codec.user_tower:
            _, names, _, mean, spread = zip(*codec.user_tower, strict=True)
            declared = standardised(_numbers(columns, names, size), mean, spread)
            numbers = np.concatenate([numbers, declared], axis=1)
        return UserContext(
            codec.users.encode(columns[c.USER]),
            attributes.codes,
            numbers,
            history,
            np.maximum(ages, 0.0),
            time,
        )

    def read(self, columns: Columns, time: Float64Array) -> UserBatch:
        """Return ``n`` feature rows at ``time`` (float64 ``[n]`` epoch seconds) as arrays."""
        attributes = self.codec.user_attributes.encode(columns, len(time))
        given, missing = with_computed(self.codec.tower_views, columns, time)
        context = self._context(given, time, attributes)
        rows = self._rows(columns, context, attributes)
        given = {c.REQUEST_TIME: time.tolist(), **columns}
        unknown = [None] * len(time)
        return UserBatch(
            context,
            rows,
            self._shares(columns, len(time)),
            self._seen(columns),
            {name: given.get(name, unknown) for name in self._inputs},
            missing,
        )

    def _rows(self, columns: Columns, context: UserContext, attributes: Encoded) -> UserRows:
        """Return the ranker's view; columns as in ``Codec.user_numeric`` and ``categorical``."""
        time = context.time
        known = _numbers(columns, self._counts, len(time))
        timing = request_time_features(time, known[:, -2], known[:, -1])
        history_length = (context.history > 0).sum(axis=1)

        # Counts, ages, history, numeric attributes, declared features: [n, Fu].
        counts = known.shape[1] - 2
        numeric = np.empty((len(time), self._width), dtype=np.float32)
        numeric[:, :counts] = known[:, :-2]
        numeric[:, counts] = timing["user_recency_days"]
        numeric[:, counts + 1] = timing["user_tenure_days"]
        numeric[:, counts + 2] = history_length
        numeric[:, counts + 3] = np.where(
            history_length > 0, context.ages[:, 0] / SECONDS_PER_DAY, np.nan
        )
        attributes_end = counts + 4 + attributes.numbers.shape[1]
        numeric[:, counts + 4 : attributes_end] = attributes.numbers
        numeric[:, attributes_end:] = _numbers(columns, self._declared, len(time))

        # Time of day and week, the coded attributes, declared categories: [n, Cu].
        known_columns = len(REQUEST_TIME) + len(self._ranked)
        declared = self.codec.user_categories
        categorical = np.empty((len(time), known_columns + len(declared)), dtype=np.int32)
        categorical[:, 0] = timing["hour_of_day"]
        categorical[:, 1] = timing["day_of_week"]
        categorical[:, 2:known_columns] = attributes.first[:, self._ranked]
        for column, (_, name, values) in enumerate(declared, start=known_columns):
            categorical[:, column] = values.encode(columns.get(name, [None] * len(time)))
        return UserRows(numeric[:, self._numeric], categorical[:, self._categorical], time)

    def _shares(self, columns: Columns, size: int) -> Float32Array:
        """Return each user's share of events by category, float32 ``[size, K]``."""
        shares = np.zeros((size, len(self.codec.categories)), dtype=np.float32)
        if c.CATEGORIES in columns:
            pairs = zip(columns[c.CATEGORIES], columns[c.CATEGORY_SHARES], strict=True)
            for row, (names, values) in enumerate(pairs):
                if names is not None and len(names):
                    shares[row, [self.codec.categories.code(name) for name in names]] = values
            shares[:, 0] = 0.0
        return shares

    def _seen(self, columns: Columns) -> list[dict[str, Int32Array]]:
        """Return each user's seen items by event type."""
        by_type = {
            t: columns[c.seen(t)] for t in self.codec.spec.event_types if c.seen(t) in columns
        }
        size = len(columns[c.USER])
        return [
            {
                t: self.codec.items.encode(lists[row] if lists[row] is not None else ())
                for t, lists in by_type.items()
            }
            for row in range(size)
        ]


def with_computed(
    views: Sequence[OnDemandView], columns: Columns, time: Float64Array
) -> tuple[Columns, tuple[str, ...]]:
    """Return feature columns with those that on-demand views compute of users and requests.

    Args:
        views: of users and requests only.
        columns: feature values and fields of the context, ``n`` each.
        time: of the requests, epoch seconds, float64 ``[n]``.

    Returns:
        the columns, and the features whose function failed: they are missing.

    """
    if not views:
        return columns, ()
    size = len(time)
    given = {c.REQUEST_TIME: time.tolist(), **columns}
    computed: dict[str, Sequence[Any]] = {}
    failed: tuple[str, ...] = ()
    for view in views:
        inputs = [_input(one, given.get(one.name, [None] * size)) for one in view.inputs]
        try:
            values = view.compute(inputs, size).T.tolist()
        except OnDemandError as error:
            _log.warning("on-demand view %s: %s", view.name, error)
            values, failed = [[np.nan] * size] * len(view.features), (*failed, *view.features)
        computed |= dict(zip(view.features, values, strict=True))
    return {**columns, **computed}, failed


def _input(given: Input, values: Sequence[Any]) -> Values:
    """Return an input of an on-demand function, ``[n]``."""
    if given.numeric:
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _numbers(columns: Columns, names: Sequence[str], size: int) -> Float64Array:
    """Return numeric columns side by side, float64 ``[size, len(names)]``; NaN where missing."""
    if not names:
        return np.empty((size, 0))
    missing = [None] * size
    # None becomes NaN.
    return np.array([columns.get(name, missing) for name in names], dtype=np.float64).T
