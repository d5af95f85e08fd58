"""The affinity table: each user's favourite categories, as of each midnight."""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from feature_repo import columns as c
from pipelines.features.activity import DAY, Span, stamped, with_heartbeats

AFFINITY_LENGTH = 20

_UNITS = "_units"
_LABEL = "_label"


def user_affinity(events: DataFrame, items: DataFrame, category: str, span: Span) -> DataFrame:
    """Return each user's categories and their shares of weight, largest first.

    Columns array<string> and array<float>. A positive event gives its weight to each category of
    its item. At most ``AFFINITY_LENGTH`` categories are stored; the shares are of all.
    """
    many = dict(items.dtypes)[category].startswith("array")
    labels = F.array_distinct(category) if many else F.array(category)
    labels = F.filter(labels, lambda label: label.isNotNull())
    # An item without a category has the category "", so that its user's days keep their rows.
    labels = F.when(F.size(labels) > 0, labels).otherwise(F.array(F.lit(""))).alias(_LABEL)
    liked = (
        events.where(c.POSITIVE)
        .groupBy(c.USER, c.ITEM, (F.col(DAY) + 1).alias(DAY))
        .agg(F.sum(c.WEIGHT))
    )
    liked = liked.toDF(c.USER, c.ITEM, DAY, c.WEIGHT).join(
        items.select(c.ITEM, labels), c.ITEM, "left"
    )
    label = F.explode(F.coalesce(_LABEL, F.array(F.lit("")))).alias(_LABEL)
    gains = liked.select(c.USER, label, DAY, c.WEIGHT)
    weight = F.sum(c.WEIGHT).over(Window.partitionBy(c.USER, _LABEL).orderBy(DAY))
    counted = (F.col(_LABEL) != "") & (F.col(c.WEIGHT) > 0)
    totals = (
        _every_day(gains, span)
        .withColumn(c.WEIGHT, weight)
        .groupBy(c.USER, DAY)
        .agg(
            F.sum(F.when(counted, F.col(c.WEIGHT))).alias(_UNITS),
            # Sorted by the negative weight first, then by name.
            F.sort_array(F.collect_list(F.when(counted, F.struct(-F.col(c.WEIGHT), _LABEL)))).alias(
                _LABEL
            ),
        )
        .withColumn(_LABEL, F.slice(_LABEL, 1, AFFINITY_LENGTH))
    )
    shares = totals.select(
        c.USER,
        DAY,
        F.transform(_LABEL, lambda entry: entry[_LABEL]).alias(c.CATEGORIES),
        F.transform(_LABEL, lambda entry: (-entry["col1"] / F.col(_UNITS)).cast("float")).alias(
            c.CATEGORY_SHARES
        ),
    )
    return stamped(with_heartbeats(shares, c.USER), c.USER, span)


def _every_day(gains: DataFrame, span: Span) -> DataFrame:
    """Sum a user's weights by label and day, with a row for each label on each day."""
    by_user = gains.groupBy(c.USER).agg(
        F.collect_set(_LABEL).alias(_LABEL),
        F.array_union(F.collect_set(DAY), F.array(F.lit(span.last_midnight).cast("bigint"))).alias(
            DAY
        ),
        F.collect_list(F.struct(_LABEL, DAY, c.WEIGHT)).alias(_UNITS),
    )
    zero = F.lit(0).cast("bigint").alias(c.WEIGHT)
    grid = F.transform(
        _LABEL,
        lambda label: F.transform(
            DAY, lambda day: F.struct(label.alias(_LABEL), day.alias(DAY), zero)
        ),
    )
    cells = by_user.select(c.USER, F.inline(F.concat(_UNITS, F.flatten(grid))))
    return cells.groupBy(c.USER, _LABEL, DAY).agg(F.sum(c.WEIGHT).alias(c.WEIGHT))
