"""The declarations that ``funnel benchmark feature-cost`` compares, as texts of ``features.py``."""

from __future__ import annotations

from collections.abc import Sequence

_HOURS = {"10m": 1 / 6, "30m": 0.5, "1h": 1, "3h": 3, "6h": 6, "12h": 12, "24h": 24, "3d": 72,
          "7d": 168, "30d": 720}  # fmt: skip
_FUNCTIONS = ("count", "sum", "mean", "max", "min")

VIEWS: dict[str, tuple[int, int, str]] = {
    "ten": (5, 2, ""),
    "forty": (8, 5, "view"),
    "fifty": (10, 5, ""),
}
"""Views of aggregates by name: the number of windows and of functions, and the event types."""

TABLE = [f"number_{n}" for n in range(100)]
"""The columns of a table of users."""

VARIANTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "10 aggregates": ("ten",),
    "50 aggregates": ("ten", "forty"),
    "100 aggregates": ("ten", "forty", "fifty"),
    "table of 100": ("numbers",),
}
"""The views that each variant declares."""

_HEAD = """from datetime import timedelta

from feast import FeatureService, FeatureView, FileSource, StreamFeatureView
from feast.aggregation import Aggregation

from feature_repo.declare import defaults, events, user

numbers = FeatureView(
    name="numbers",
    entities=[user],
    source=FileSource(path="numbers.parquet", timestamp_field="known_from"),
)
"""


def features_file(variants: Sequence[str]) -> str:
    """Return a ``features.py`` whose ranking service reads the views of some variants."""
    views = list(dict.fromkeys(view for name in variants for view in VARIANTS[name]))
    aggregates = [_aggregates(view) for view in views if view in VIEWS]
    names = ", ".join(["*defaults.ranking", *views])
    ranking = f'ranking = FeatureService(name="ranking", features=[{names}])\n'
    return "\n".join([_HEAD, *aggregates, ranking])


def _aggregates(view: str) -> str:
    windows, functions, types = VIEWS[view]
    lines = [
        f'    Aggregation("{"event_id" if function == "count" else "value"}", "{function}", '
        f'time_window=timedelta(hours={hours}), name="{function}_{window}_{view}"),'
        for window, hours in list(_HOURS.items())[:windows]
        for function in _FUNCTIONS[:functions]
    ]
    tags = f'tags={{"event_types": "{types}"}}, ' if types else ""
    return (
        f'{view} = StreamFeatureView(name="{view}", entities=[user], source=events,\n'
        f'    timestamp_field="timestamp", {tags}aggregations=[\n' + "\n".join(lines) + "\n])\n"
    )
