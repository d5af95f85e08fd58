"""The figures of an evaluation: what ``evaluation.json`` in a release's folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from feature_repo.files import read_json, write_json
from serving.releases.manifest import EVALUATION

Interval = tuple[float, float]
"""Lower and upper bound."""

_OPTIONAL = ("share_of_best_possible", "ablations", "against")
"""Keys that are missing from the file, rather than null, where they were not asked for."""


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True)


class PairedDifference(_Figures):
    """Two models compared on the same events: means, their difference, and how sure it is."""

    first: float
    second: float
    difference: float
    interval: Interval | None
    p_bootstrap: float
    p_wilcoxon: float


class SliceFigures(_Figures):
    """One slice of the events: each model's NDCG@10, and the interval of the funnel's."""

    events: int
    users: int
    ndcg: dict[str, float] = Field(alias="ndcg@10")
    interval: Interval | None


class Gap(_Figures):
    """How far apart the funnel's NDCG@10 is between the values of one attribute."""

    gap: float
    highest: str
    lowest: str
    interval: Interval | None


class BaselineSearch(_Figures):
    """How a baseline was tuned.

    Attributes:
        chosen: the best settings on validation.
        validation: each setting tried, with its ``ndcg@10``.
        unfinished: settings for which there was no time, or too little.

    """

    chosen: dict[str, JsonValue]
    validation: list[dict[str, Any]]
    unfinished: int = 0


class BaselineFigures(_Figures):
    """How the baselines were tuned, and why others are left out, by name."""

    settings: dict[str, BaselineSearch]
    left_out: dict[str, str]


class Comparison(_Figures):
    """A release against another one, on events that neither had learned from."""

    release: str
    events: int
    users: int
    metrics: dict[str, PairedDifference]


class Evaluation(_Figures):
    """The figures of one release.

    Attributes:
        data: name of the data set.
        release: id of the release.
        users: number of users in the test events.
        events: number of test events.
        repeats_left_out: positive test events that were not a first contact.
        models: each model's metrics.
        intervals: the 95% intervals of some of them.
        funnel_minus: NDCG@10 of the funnel against every other model.
        baselines: how they were tuned; None: not asked for.
        candidates: recall of the candidates.
        degraded: how often the funnel answered without which part.
        slices: by dimension and value.
        gaps: by attribute.
        share_of_best_possible: NDCG@10 as a share of the oracle's; None: no oracle.
        ablations: NDCG@10 of the funnel without each part, against the whole; None: not asked for.
        against: another release on the same events; None: not asked for.

    """

    data: str
    release: str
    users: int
    events: int
    repeats_left_out: int
    models: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, Interval | None]]
    funnel_minus: dict[str, PairedDifference]
    baselines: BaselineFigures | None
    candidates: dict[str, float]
    degraded: dict[str, int]
    slices: dict[str, dict[str, SliceFigures]]
    gaps: dict[str, Gap]
    share_of_best_possible: dict[str, float] | None = None
    ablations: dict[str, PairedDifference] | None = None
    against: Comparison | None = None

    @classmethod
    def load(cls, folder: Path) -> Evaluation | None:
        """Return the evaluation of a release; None: it was not evaluated."""
        path = folder / EVALUATION
        return cls.model_validate(read_json(path)) if path.is_file() else None

    def save(self, folder: Path) -> None:
        """Write the evaluation into a release's folder."""
        write_json(folder / EVALUATION, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        missing = {name for name in _OPTIONAL if getattr(self, name) is None}
        values = self.model_dump(mode="json", by_alias=True, exclude=missing)
        for search in (values["baselines"] or {"settings": {}})["settings"].values():
            if not search["unfinished"]:
                del search["unfinished"]
        return values
