"""The style of the notebooks' figures, and a plot that several of them use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Interval = Sequence[float] | None
"""Lower and upper bound; None: too little data for one."""


def use_style() -> None:
    """Set matplotlib's defaults: quiet axes, a light grid below the data, room for labels."""
    import matplotlib

    matplotlib.rcParams.update(
        {
            "figure.constrained_layout.use": True,
            "figure.figsize": (8.0, 3.6),
            "figure.dpi": 110,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.titlesize": "medium",
            "axes.titlelocation": "left",
            "grid.color": "#e5e5e5",
            "legend.frameon": False,
        }
    )


def dots_with_intervals(
    axes: Axes,
    names: Sequence[str],
    values: Sequence[float],
    intervals: Sequence[Interval],
    *,
    colour: str = "C0",
) -> None:
    """Draw a row for each name, from the top down: a dot at its value, a line over its interval.

    Args:
        axes: where to; the values go along x.
        names: ``n`` labels.
        values: ``n`` figures.
        intervals: ``n`` of them, in the unit of the values.
        colour: of dots and lines.

    """
    rows = range(len(names))
    for row, bounds in zip(rows, intervals, strict=True):
        if bounds is not None:
            axes.plot(
                list(bounds),
                [row, row],
                color=colour,
                linewidth=2,
                alpha=0.45,
                solid_capstyle="butt",
            )
    axes.plot(list(values), rows, "o", color=colour, markersize=5)
    axes.set_yticks(rows, names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.locator_params(axis="x", nbins=6)
