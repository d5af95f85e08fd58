"""Baselines tuned on the validation slice, then fitted on everything before the test cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from feature_repo import columns as c
from feature_repo.encoding import Codes
from pipelines.evaluation.baselines import (
    LARGEST_EASE,
    Baseline,
    Ease,
    Ials,
    ItemKnn,
    Matrix,
    WithPopularity,
)
from pipelines.evaluation.metrics import accuracy
from pipelines.evaluation.replayed_requests import (
    Allowed,
    Lists,
    Model,
    allowed_items,
    by_scores,
    histories,
    rank_all,
)
from pipelines.training.past_requests import InteractionHistory, Requests, requests_from
from pipelines.training.split import epoch_seconds
from retrieval.towers.training import Progress
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

_SAMPLE = 2_000
_BATCH = 128
_LONGEST = 1_000


@dataclass
class Tuned:
    """Fitted baselines by name, the figures of each setting tried, and why others are left out."""

    models: dict[str, Model] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def __or__(self, other: Tuned) -> Tuned:
        return Tuned(
            self.models | other.models,
            self.settings | other.settings,
            self.left_out | other.left_out,
        )

    def __bool__(self) -> bool:
        return bool(self.models or self.left_out)


def tuned_baselines(
    release: Release, events: pd.DataFrame, interactions: InteractionHistory, progress: Progress
) -> Tuned:
    """Tune each baseline on the slice from ``split.choose`` to ``split.test``, then fit it on all before the test.

    Args:
        release: whose catalogue, rules and split count.
        events: the whole log in order of time.
        interactions: the same log by user.
        progress: told before each fit.

    """
    split, time = release.manifest["split"], epoch_seconds(events[c.TIMESTAMP])
    codec, tuned = release.codec, Tuned()
    earlier = interaction_matrix(events[time < split["choose"]], codec)
    known = interaction_matrix(events[time < split["test"]], codec)
    validation = Validation.of(release, events, interactions)
    for name, (build, _) in LADDERS.items():
        if reason := _cannot(name, codec):
            tuned.left_out[name] = reason
            continue
        best, tried = _tune(name, earlier, validation, progress)
        progress(f"fitting {name}", len(tried), 0)
        tuned.models[name] = _model(WithPopularity(build(known, **best), known))
        tuned.settings[name] = {"chosen": best, "validation": tried}
    return tuned


def _tune(
    name: str, earlier: Matrix, validation: Validation, progress: Progress
) -> tuple[Setting, list[Setting]]:
    """Return a baseline's best setting, and all that were tried with their ``ndcg@10``."""
    build, ladders = LADDERS[name]
    tried: list[Setting] = []

    def ndcg(setting: Setting) -> float:
        progress(f"tuning {name}", len(tried), 0)
        found = validation.ndcg(WithPopularity(build(earlier, **setting), earlier))
        tried.append({**setting, "ndcg@10": found})
        return found

    return climb(ladders, ndcg), tried


def climb(ladders: Ladders, figure: Callable[[Setting], float]) -> Setting:
    """Return a setting that no single step on any ladder makes better, sought from the middle of all.

    One value at a time goes up or down for as long as the figure grows, until none can: a local
    optimum, which reaches further than a grid of as many trials.
    """
    names = list(ladders)
    found: dict[tuple[int, ...], float] = {}

    def at(place: tuple[int, ...]) -> float:
        inside = all(0 <= row < len(ladders[name]) for name, row in zip(names, place, strict=True))
        if inside and place not in found:
            found[place] = figure(setting(place))
        return found[place] if inside else -np.inf

    def setting(place: tuple[int, ...]) -> Setting:
        return {name: ladders[name][row] for name, row in zip(names, place, strict=True)}

    best, before = tuple(len(ladders[name]) // 2 for name in names), None
    while best != before:
        before = best
        for axis, step in ((axis, step) for axis in range(len(names)) for step in (1, -1)):
            while at(best) < at(further := (*best[:axis], best[axis] + step, *best[axis + 1 :])):
                best = further
    return setting(best)


def _model(baseline: Baseline) -> Model:
    return by_scores(lambda batch: baseline.scores(batch.histories))


def _cannot(name: str, codec: Codec) -> str | None:
    if name == "ease" and len(codec.items) - 1 > LARGEST_EASE:
        return f"{len(codec.items) - 1} items are more than the {LARGEST_EASE} whose pairs fit in memory"
    if name == "ials" and find_spec("implicit") is None:
        return (
            "the library implicit is not installed: pip install '.[baselines]' -c constraints.txt"
        )
    return None


def interaction_matrix(events: pd.DataFrame, codec: Codec) -> Matrix:
    """Return who took up what, float32 ``[users, N]`` sparse: 1 for a user's positive events, once an item.

    Of users with more, the newest 1,000 items count: pairs grow with the square of a history.
    """
    pairs = events[events[c.POSITIVE]].drop_duplicates([c.USER, c.ITEM], keep="last")
    pairs = pairs.groupby(c.USER, sort=False).tail(_LONGEST)
    user, item = (
        pairs[c.USER].astype("category").cat.codes.to_numpy(),
        codec.items.encode(pairs[c.ITEM].tolist()),
    )
    shape = (int(user.max(initial=-1)) + 1, len(codec.items))
    return sparse.csr_matrix((np.ones(len(item), dtype=np.float32), (user, item)), shape=shape)


class Validation:
    """The validation slice's requests; what they may be shown is worked out anew each time, to be small in memory."""

    def __init__(
        self, release: Release, requests: Requests, interactions: InteractionHistory
    ) -> None:
        self.requests = requests
        self._release, self._interactions = release, interactions
        self._histories = histories(interactions, requests, len(release.codec.items))

    @classmethod
    def of(
        cls, release: Release, events: pd.DataFrame, interactions: InteractionHistory
    ) -> Validation:
        """Return first contacts from ``split.choose`` to ``split.test``, at most 2,000, evenly spaced."""
        split, time = release.manifest["split"], epoch_seconds(events[c.TIMESTAMP])
        inside = (time >= split["choose"]) & (time < split["test"]) & events[c.POSITIVE].to_numpy()
        rows = np.flatnonzero(inside & ~events.duplicated([c.USER, c.ITEM]).to_numpy())
        if len(rows) > _SAMPLE:
            rows = rows[np.linspace(0, len(rows) - 1, _SAMPLE).astype(np.int64)]
        return cls(release, requests_from(events.iloc[rows], release.codec), interactions)

    def batches(self) -> Iterator[tuple[Matrix, Allowed, Codes]]:
        """Yield histories float32 ``[B, N]`` sparse, what may be shown bool ``[B, N]``, right items int32 ``[B]``."""
        for start in range(0, len(self.requests), _BATCH):
            rows = slice(start, start + _BATCH)
            part = self.requests[rows]
            pairs = zip(part.user, part.time, strict=True)
            seen = [self._interactions.seen(user, time) for user, time in pairs]
            filters = self._release.recommender.filters
            yield (
                self._histories[rows],
                allowed_items(filters, self._release.items, seen, part),
                part.item,
            )

    def ndcg(self, baseline: Baseline) -> float:
        """Return the mean NDCG@10 of a baseline."""
        lists = [
            rank_all(baseline.scores(past), allowed, right)
            for past, allowed, right in self.batches()
        ]
        return accuracy(Lists.join(lists).ranks)["ndcg@10"]
