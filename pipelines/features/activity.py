"""Activity tables: counts over windows, as of each midnight, in time linear in the events.

Days and microseconds are counted from 1970-01-01.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec

MICROS = 1_000_000
DAY_MICROS = 86_400 * MICROS

HEARTBEAT_DAYS = 84
"""An unchanged row is repeated this often, so that its value never exceeds a TTL of 90 days."""

DAY = "_day"
"""Column of an event's day."""

EVENT_MICROS = "_moment"
"""Column of an event's time in microseconds."""

_UNITS = "_units"
_NEXT = "_next"
_PREVIOUS = "_previous"
_EVENTS = "_events"
_VALUES = "_values"
_OFFSET = "_offset"
_FINITE = {window: days for window, days in c.WINDOWS.items() if days is not None}


@dataclass(frozen=True)
class Span:
    """The time that the events cover: first day, last midnight, and time of the final snapshot."""

    first_day: int
    last_midnight: int
    end: int

    def stamp(self, day: Column) -> Column:
        """Return the time from which the snapshot of a midnight is known, as a timestamp."""
        return F.timestamp_micros(self.stamp_micros(day))

    def stamp_micros(self, day: Column) -> Column:
        """Return the same in microseconds, bigint."""
        return F.when(day == self.last_midnight, F.lit(self.end)).otherwise(day * F.lit(DAY_MICROS))


def user_activity(events: DataFrame, spec: DatasetSpec, span: Span) -> DataFrame:
    """Return each user's activity.

    Counts by window (bigint), mean values (double), first and last event, active days.
    """
    return _activity(events, spec, span, key=c.USER, distinct=c.distinct_items)


def item_activity(events: DataFrame, spec: DatasetSpec, span: Span) -> DataFrame:
    """Return each item's activity.

    Counts by window (bigint), mean values (double), first and last event, and trend. The trend is
    the logarithm of the week's events a day over the month's, each plus 0.1 so that an item with
    few events has a trend near zero.
    """
    week, month = (
        F.col(c.events(window)) / days + 0.1 for window, days in (("7d", 7), ("30d", 30))
    )
    activity = _activity(events, spec, span, key=c.ITEM, distinct=c.distinct_users)
    return activity.withColumn(c.TREND, F.ln(week / month)).drop(c.ACTIVE_DAYS)


def _activity(
    events: DataFrame,
    spec: DatasetSpec,
    span: Span,
    *,
    key: str,
    distinct: Callable[[str, str], str],
) -> DataFrame:
    """Count over windows in time linear in the events, by what enters and leaves each window.

    An event of day ``d`` is in the window of ``n`` days from midnight ``d + 1`` to midnight
    ``d + n``: it adds at the one and takes away at ``d + n + 1``. So only these midnights, and the
    last, can have a new row.
    """
    # One row per day and midnight at which the day's events enter (1) or leave a window.
    offset = F.col(_OFFSET)
    changes = (
        _daily(events, spec, key)
        .withColumn(
            _OFFSET,
            F.explode(F.array(*map(F.lit, [0, 1, *(days + 1 for days in _FINITE.values())]))),
        )
        .withColumn(
            DAY, F.when(offset == 0, F.lit(span.last_midnight)).otherwise(F.col(DAY) + offset)
        )
        .where(F.col(DAY) <= span.last_midnight)
        .groupBy(key, DAY)
        .agg(
            F.min(F.when(offset == 1, F.col(c.FIRST_EVENT_AT))).alias(c.FIRST_EVENT_AT),
            F.max(F.when(offset == 1, F.col(c.LAST_EVENT_AT))).alias(c.LAST_EVENT_AT),
            F.count_if(offset == 1).alias(c.ACTIVE_DAYS),
            *_window_changes(spec, distinct),
        )
    )

    # Running sums of the changes are the counts.
    history = (
        Window.partitionBy(key)
        .orderBy(DAY)
        .rowsBetween(Window.unboundedPreceding, Window.currentRow)
    )
    fold = {c.FIRST_EVENT_AT: F.min, c.LAST_EVENT_AT: F.max}
    names = [name for name in changes.columns if name not in (key, DAY)]
    totals = changes.select(
        key, DAY, *(fold.get(name, F.sum)(name).over(history).alias(name) for name in names)
    )

    # Sums of values become means.
    if spec.has_value:
        means = {
            c.value_mean(window): F.when(
                values > 0, F.col(_UNITS + window).cast("double") / (values * MICROS)
            )
            for window, values in ((window, F.col(_VALUES + window)) for window in c.WINDOWS)
        }
        totals = totals.withColumns(means).drop(
            *(part + window for part in (_UNITS, _VALUES) for window in c.WINDOWS)
        )
    return stamped(with_heartbeats(totals, key), key, span)


def _daily(events: DataFrame, spec: DatasetSpec, key: str) -> DataFrame:
    """Sum each key's events by day, and count the pairs that enter or leave each window.

    A pair (user, item, type) counts once in a window however often it occurs: it comes in with an
    occurrence that has no other in the ``n`` days before it, and goes out after one that has no
    other in the ``n`` days after it.
    """
    pair_days = events.groupBy(c.USER, c.ITEM, c.TYPE, DAY).agg(
        F.count("*").alias(_EVENTS),
        F.sum(c.VALUE).alias(_UNITS),
        F.count(c.VALUE).alias(_VALUES),
        F.min(EVENT_MICROS).alias(c.FIRST_EVENT_AT),
        F.max(EVENT_MICROS).alias(c.LAST_EVENT_AT),
    )
    days = Window.partitionBy(c.USER, c.ITEM, c.TYPE).orderBy(DAY)
    pair_days = pair_days.withColumns(
        {_PREVIOUS: F.lag(DAY).over(days), _NEXT: F.lead(DAY).over(days)}
    )
    previous, following = F.col(_PREVIOUS), F.col(_NEXT)
    sums = {
        _EVENTS: F.sum(_EVENTS),
        _VALUES: F.sum(_VALUES),
        _UNITS: F.coalesce(F.sum(_UNITS), F.lit(0)),
    }
    sums[c.FIRST_EVENT_AT] = F.floor(F.min(c.FIRST_EVENT_AT) / MICROS)
    sums[c.LAST_EVENT_AT] = F.floor(F.max(c.LAST_EVENT_AT) / MICROS)
    for kind in spec.event_types:
        of_kind = F.col(c.TYPE) == kind
        sums[_EVENTS + kind] = F.sum(F.when(of_kind, F.col(_EVENTS)).otherwise(0))
        sums[f"_in_{kind}_all"] = F.count_if(of_kind & previous.isNull())
        for window, n in _FINITE.items():
            new = previous.isNull() | (previous < F.col(DAY) - n)
            last = following.isNull() | (following > F.col(DAY) + n)
            sums[f"_in_{kind}_{window}"] = F.count_if(of_kind & new)
            sums[f"_out_{kind}_{window}"] = F.count_if(of_kind & last)
    return pair_days.groupBy(key, DAY).agg(*(total.alias(name) for name, total in sums.items()))


def _window_changes(spec: DatasetSpec, distinct: Callable[[str, str], str]) -> Iterator[Column]:
    """Yield, for each windowed column, the sum of what enters and leaves at one midnight."""
    for window, n in c.WINDOWS.items():
        parts = {c.events(window): (_EVENTS, _EVENTS)}
        for kind in spec.event_types:
            parts[c.count(kind, window)] = (_EVENTS + kind, _EVENTS + kind)
            parts[distinct(kind, window)] = (f"_in_{kind}_{window}", f"_out_{kind}_{window}")
        if spec.has_value:
            parts |= {_UNITS + window: (_UNITS, _UNITS), _VALUES + window: (_VALUES, _VALUES)}
        for name, (entering, leaving) in parts.items():
            change = F.when(F.col(_OFFSET) == 1, F.col(entering))
            if n is not None:
                change = change.when(F.col(_OFFSET) == n + 1, -F.col(leaving))
            yield F.sum(change.otherwise(0)).alias(name)


def with_heartbeats(snapshots: DataFrame, key: str) -> DataFrame:
    """Repeat each snapshot every ``HEARTBEAT_DAYS`` until the key's next one."""
    following = F.lead(DAY).over(Window.partitionBy(key).orderBy(DAY))
    until = F.coalesce(F.col(_NEXT) - 1, F.col(DAY))
    days = F.sequence(F.col(DAY), until, F.lit(HEARTBEAT_DAYS).cast("bigint"))
    return snapshots.withColumn(_NEXT, following).withColumn(DAY, F.explode(days)).drop(_NEXT)


def stamped(snapshots: DataFrame, key: str, span: Span) -> DataFrame:
    """Replace a snapshot's day by the time from which it is known; sort as Parquet packs best."""
    values = [name for name in snapshots.columns if name not in (key, DAY)]
    stamped = snapshots.select(key, span.stamp(F.col(DAY)).alias(c.EVENT_TIMESTAMP), *values)
    return stamped.sortWithinPartitions(key, c.EVENT_TIMESTAMP)
