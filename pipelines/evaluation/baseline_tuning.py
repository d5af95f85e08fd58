"""Baselines tuned on the validation part, then fitted on everything before the test cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec

import numpy as np
import pandas as pd
from scipy import sparse

from feature_repo import columns as c
from feature_repo.arrays import BoolArray, Int32Array
from feature_repo.progress import Progress
from pipelines.evaluation.baselines import (
    LARGEST_EASE,
    Baseline,
    Ease,
    Ials,
    ItemKnn,
    Matrix,
    WithPopularity,
)
from pipelines.evaluation.figures import BaselineFigures, BaselineSearch
from pipelines.evaluation.held_out import spaced
from pipelines.evaluation.metrics import accuracy
from pipelines.evaluation.replayed_requests import (
    Lists,
    Model,
    allowed_items,
    by_scores,
    histories,
    rank_all,
)
from pipelines.training.past_requests import InteractionHistory, Requests, requests_from
from pipelines.training.split import Split, epoch_seconds
from serving.recommender.codec import Codec
from serving.releases.release import Release

Setting = dict[str, float]
Ladders = dict[str, tuple[float, ...]]

LADDERS: dict[str, tuple[Callable[..., Baseline], Ladders]] = {
    "item_knn": (
        ItemKnn,
        {
            "neighbours": (2, 5, 10, 20, 50, 150, 400, 1_000, 4_000),
            "shrinkage": (0.0, 3.0, 10.0, 30.0, 100.0),
        },
    ),
    "ease": (
        Ease,
        {"l2": (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 30_000.0)},
    ),
    "ials": (
        Ials,
        {
            "factors": (16, 32, 64, 128, 256),
            "alpha": (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0),
            "regularization": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0),
        },
    ),
}
"""The values that each setting of a baseline can have, in order."""

_MAX_REQUESTS = 2_000
_BATCH = 128
_MAX_HISTORY = 1_000


@dataclass
class TunedBaselines:
    """Fitted baselines by name, how each was tuned, and why others are left out."""

    models: dict[str, Model] = field(default_factory=dict)
    searches: dict[str, BaselineSearch] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def __or__(self, other: TunedBaselines) -> TunedBaselines:
        return TunedBaselines(
            self.models | other.models,
            self.searches | other.searches,
            self.left_out | other.left_out,
        )

    def __bool__(self) -> bool:
        return bool(self.models or self.left_out)

    def figures(self) -> BaselineFigures:
        """Return what the evaluation says of them."""
        return BaselineFigures(settings=self.searches, left_out=self.left_out)


def tuned_baselines(
    release: Release, events: pd.DataFrame, interactions: InteractionHistory, progress: Progress
) -> TunedBaselines:
    """Tune each baseline on the selection part, then fit it on all events before the test part.

    Args:
        release: whose catalogue, rules and split apply.
        events: the whole log in order of time.
        interactions: the same log by user.
        progress: progress callback.

    """
    split = Split.from_dict(release.manifest.split)
    time = epoch_seconds(events[c.TIMESTAMP])
    earlier = interaction_matrix(events[time < split.selection], release.codec)
    known = interaction_matrix(events[time < split.test], release.codec)
    validation = Validation.of(release, events, interactions)

    tuned = TunedBaselines()
    for name, (build, _) in LADDERS.items():
        if reason := _reason_to_leave_out(name, release.codec):
            tuned.left_out[name] = reason
            continue
        best, tried = _tune(name, earlier, validation, progress)
        progress(f"fitting {name}", len(tried), 0)
        tuned.models[name] = _model(WithPopularity(build(known, **best), known))
        tuned.searches[name] = BaselineSearch(chosen=dict(best), validation=tried)
    return tuned


def _tune(
    name: str, earlier: Matrix, validation: Validation, progress: Progress
) -> tuple[Setting, list[Setting]]:
    """Return a baseline's best setting, and all that were tried with their ``ndcg@10``."""
    build, ladders = LADDERS[name]
    tried: list[Setting] = []

    def ndcg(setting: Setting) -> float:
        progress(f"tuning {name}", len(tried), 0)
        value = validation.ndcg(WithPopularity(build(earlier, **setting), earlier))
        tried.append({**setting, "ndcg@10": value})
        return value

    return climb(ladders, ndcg), tried


def climb(ladders: Ladders, figure: Callable[[Setting], float]) -> Setting:
    """Return a setting that no single step on any ladder improves, starting in the middle of all.

    One value at a time goes up or down for as long as the figure grows, until none can: coordinate
    ascent to a local optimum, which reaches further than a grid of as many trials.
    """
    names = list(ladders)
    figures: dict[tuple[int, ...], float] = {}

    def setting(rungs: tuple[int, ...]) -> Setting:
        return {name: ladders[name][rung] for name, rung in zip(names, rungs, strict=True)}

    def figure_at(rungs: tuple[int, ...]) -> float:
        for name, rung in zip(names, rungs, strict=True):
            if not 0 <= rung < len(ladders[name]):
                return -np.inf
        if rungs not in figures:
            figures[rungs] = figure(setting(rungs))
        return figures[rungs]

    best = tuple(len(ladders[name]) // 2 for name in names)
    before = None
    while best != before:
        before = best
        for axis, step in ((axis, step) for axis in range(len(names)) for step in (1, -1)):
            while True:
                neighbour = (*best[:axis], best[axis] + step, *best[axis + 1 :])
                if figure_at(best) >= figure_at(neighbour):
                    break
                best = neighbour
    return setting(best)


def _model(baseline: Baseline) -> Model:
    return by_scores(lambda batch: baseline.scores(batch.histories))


def _reason_to_leave_out(name: str, codec: Codec) -> str | None:
    if name == "ease" and len(codec.items) - 1 > LARGEST_EASE:
        return (
            f"{len(codec.items) - 1} items are more than the {LARGEST_EASE} "
            "whose pairs fit in memory"
        )
    if name == "ials" and find_spec("implicit") is None:
        return (
            "the library implicit is not installed: pip install '.[baselines]' -c constraints.txt"
        )
    return None


def interaction_matrix(events: pd.DataFrame, codec: Codec) -> Matrix:
    """Return who interacted with what, float32 ``[users, N]`` sparse: 1 for positive events.

    Of users with more, the newest 1,000 items count: pairs grow with the square of a history.
    """
    pairs = events[events[c.POSITIVE]].drop_duplicates([c.USER, c.ITEM], keep="last")
    pairs = pairs.groupby(c.USER, sort=False).tail(_MAX_HISTORY)
    user = pairs[c.USER].astype("category").cat.codes.to_numpy()
    item = codec.items.encode(pairs[c.ITEM].tolist())
    shape = (int(user.max(initial=-1)) + 1, len(codec.items))
    return sparse.csr_matrix((np.ones(len(item), dtype=np.float32), (user, item)), shape=shape)


class Validation:
    """The requests of the selection part.

    Which items may be shown is computed again for each pass, to use little memory.
    """

    def __init__(
        self, release: Release, requests: Requests, interactions: InteractionHistory
    ) -> None:
        self.requests = requests
        self._release = release
        self._interactions = interactions
        self._histories = histories(interactions, requests, len(release.codec.items))

    @classmethod
    def of(
        cls, release: Release, events: pd.DataFrame, interactions: InteractionHistory
    ) -> Validation:
        """Return the part's positive first contacts, at most 2,000, evenly spaced."""
        split = Split.from_dict(release.manifest.split)
        time = epoch_seconds(events[c.TIMESTAMP])
        inside = (time >= split.selection) & (time < split.test) & events[c.POSITIVE].to_numpy()
        first_contact = ~events.duplicated([c.USER, c.ITEM]).to_numpy()
        rows = spaced(np.flatnonzero(inside & first_contact), _MAX_REQUESTS)
        return cls(release, requests_from(events.iloc[rows], release.codec), interactions)

    def batches(self) -> Iterator[tuple[Matrix, BoolArray, Int32Array]]:
        """Yield histories, items that may be shown, and right items.

        They are float32 ``[B, N]`` sparse, bool ``[B, N]`` and int32 ``[B]``.
        """
        filters = self._release.recommender.filters
        for start in range(0, len(self.requests), _BATCH):
            rows = slice(start, start + _BATCH)
            part = self.requests[rows]
            pairs = zip(part.user, part.time, strict=True)
            seen = [self._interactions.seen(user, time) for user, time in pairs]
            allowed = allowed_items(filters, self._release.items, seen, part)
            yield self._histories[rows], allowed, part.item

    def ndcg(self, baseline: Baseline) -> float:
        """Return the mean NDCG@10 of a baseline."""
        lists = [
            rank_all(baseline.scores(past), allowed, right)
            for past, allowed, right in self.batches()
        ]
        return accuracy(Lists.join(lists).ranks)["ndcg@10"]
