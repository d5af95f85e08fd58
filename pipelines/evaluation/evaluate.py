"""Offline evaluation as it would have been served: the test slice replayed through the real funnel.

Every positive event after the cut that is its user's first contact with the item is predicted from
what was known just before it; the model is frozen, histories and counts advance. All items that
could be had and were not seen are ranked: no sampled metrics. Baselines get the same events and
the same knowledge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from feature_repo import columns as c
from feature_repo.workspace import Workspace, write_json
from pipelines.evaluation.ablations import ablations as without_parts
from pipelines.evaluation.baseline_tuning import Tuned, tuned_baselines
from pipelines.evaluation.evaluated_models import Funnel, simple_models, towers
from pipelines.evaluation.intervals import UserBootstrap, interval, paired
from pipelines.evaluation.metrics import (
    DEPTHS,
    Catalogue,
    accuracy,
    deep_gains,
    gains,
    list_figures,
    recall,
)
from pipelines.evaluation.oracle import oracle
from pipelines.evaluation.peers import sasrec
from pipelines.evaluation.replayed_requests import Lists, Model, replay_requests
from pipelines.evaluation.slices import dimensions, slice_figures
from pipelines.features.point_in_time import PointInTime
from pipelines.ingest.ingest import read_events
from pipelines.training.past_requests import InteractionHistory, Requests, requests_from
from pipelines.training.split import epoch_seconds
from retrieval.towers.training import Progress
from serving.releases.release import EVALUATION, Release, load_release

PAIRED = ("ndcg@10", "recall@10", "mrr@10")


def evaluate(
    workspace: Workspace,
    folder: Path,
    progress: Progress,
    limit: int | None = None,
    *,
    baselines: bool = True,
    peer_minutes: float | None = None,
    ablations: bool = False,
    against: Path | None = None,
) -> dict[str, Any]:
    """Evaluate a release, write ``evaluation.json`` into it and return it.

    Args:
        workspace: the working folder with events and features.
        folder: the release.
        progress: told after each batch.
        limit: at most so many events, evenly spaced over the test slice; by default all.
        baselines: also item kNN, EASE and iALS, tuned on the validation slice.
        peer_minutes: also SASRec, if its environment is there, which may take about so long; by
            default not.
        ablations: also the funnel without each of its parts.
        against: another release, to be compared on the same events.

    """
    release, other = load_release(folder), load_release(against) if against else None
    test = HeldOut.of(read_events(workspace), release, limit)
    interactions, requests = (
        InteractionHistory(test.events, release.codec),
        requests_from(test.chosen, release.codec),
    )
    tuned = tuned_baselines(release, test.events, interactions, progress) if baselines else Tuned()
    if peer_minutes is not None:
        tuned = tuned | sasrec(
            workspace, release, test.events, interactions, requests, peer_minutes, progress
        )
    catalogue = _catalogue(release, test.known)
    funnel, best = Funnel(release.recommender), oracle(workspace, release, interactions)
    models: dict[str, Model] = {
        **simple_models(catalogue.popularity), **tuned.models, "two_tower": towers(release), "funnel": funnel,
        **({"oracle": best} if best else {}),
    }  # fmt: skip
    switched = (
        without_parts(release, PointInTime(workspace), requests, interactions) if ablations else {}
    )
    lists = _run(release, workspace, requests, interactions, {**models, **switched}, progress)
    per_event = {name: {**gains(of.ranks), **deep_gains(of.ranks)} for name, of in lists.items()}
    ndcg = {name: values["ndcg@10"] for name, values in per_event.items()}
    users = UserBootstrap(requests.user)
    figures = {
        name: {
            **accuracy(lists[name].ranks),
            **_deep(lists[name]),
            **list_figures(lists[name].top, catalogue),
        }
        for name in models
    }
    parts = dimensions(workspace, release, requests, interactions, test.known)
    slices, gaps = slice_figures(
        parts, requests.user, {name: ndcg[name] for name in models}, "funnel"
    )
    result: dict[str, Any] = {
        "data": release.codec.spec.name,
        "release": release.id,
        "users": users.size,
        "events": len(requests),
        "repeats_left_out": test.repeats,
        "models": figures,
        "intervals": {name: _intervals(users, per_event[name]) for name in models},
        "funnel_minus": {
            name: paired(users, ndcg["funnel"], ndcg[name]) for name in models if name != "funnel"
        },
        "baselines": {"settings": tuned.settings, "left_out": tuned.left_out} if tuned else None,
        "candidates": {
            f"recall@{depth}": recall(funnel.candidate_ranks, depth) for depth in DEPTHS
        },
        "degraded": dict(funnel.degraded),
        "slices": slices,
        "gaps": gaps,
    }
    if best and (ceiling := figures["oracle"]["ndcg@10"]):
        result["share_of_best_possible"] = {
            name: of["ndcg@10"] / ceiling for name, of in figures.items()
        }
    if ablations:
        result["ablations"] = {name: paired(users, ndcg[name], ndcg["funnel"]) for name in switched}
    if other is not None:
        result["against"] = _against(workspace, other, test, per_event["funnel"], progress)
    write_json(folder / EVALUATION, result)
    return result


@dataclass(frozen=True)
class HeldOut:
    """The log, what of it was known before the cut, and the events of the test slice that are to be predicted."""

    events: pd.DataFrame
    known: pd.DataFrame
    chosen: pd.DataFrame
    repeats: int

    @classmethod
    def of(cls, events: pd.DataFrame, release: Release, limit: int | None) -> HeldOut:
        """Return positive events after the cut that are their user's first contact with the item, ``limit`` of them."""
        after = epoch_seconds(events[c.TIMESTAMP]) >= release.manifest["split"]["test"]
        positive = after & events[c.POSITIVE].to_numpy()
        first = positive & ~events.duplicated([c.USER, c.ITEM]).to_numpy()
        rows = np.flatnonzero(first)
        if limit is not None and len(rows) > limit:
            rows = rows[np.linspace(0, len(rows) - 1, limit).astype(np.int64)]
        return cls(events, events[~after], events.iloc[rows], int(positive.sum() - first.sum()))


def popularity(release: Release, known: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return how many of the known events took each item up, float64 ``[N]``."""
    items = release.codec.items
    taken = items.encode(known.loc[known[c.POSITIVE], c.ITEM].tolist())
    return np.bincount(taken, minlength=len(items)).astype(np.float64)


def _catalogue(release: Release, known: pd.DataFrame) -> Catalogue:
    return Catalogue(
        popularity(release, known), np.asarray(release.retrieval.vectors), release.items.categories
    )


def _run(
    release: Release,
    workspace: Workspace,
    requests: Requests,
    interactions: InteractionHistory,
    models: Mapping[str, Model],
    progress: Progress,
) -> dict[str, Lists]:
    """Return every model's lists for all requests."""
    found: dict[str, list[Lists]] = {name: [] for name in models}
    done = 0
    for batch in replay_requests(release, PointInTime(workspace), requests, interactions):
        for name, model in models.items():
            found[name].append(model(batch))
        done += len(batch.requests)
        progress("evaluating", done, len(requests))
    return {name: Lists.join(parts) for name, parts in found.items()}


def _deep(lists: Lists) -> dict[str, float]:
    return {f"recall@{depth}": recall(lists.ranks, depth) for depth in DEPTHS}


def _intervals(
    users: UserBootstrap, values: dict[str, npt.NDArray[np.float64]]
) -> dict[str, list[float] | None]:
    draws = users.means(list(values.values()))
    return {name: interval(draws[:, column]) for column, name in enumerate(values)}


def _against(
    workspace: Workspace,
    other: Release,
    test: HeldOut,
    ours: dict[str, npt.NDArray[np.float64]],
    progress: Progress,
) -> dict[str, Any]:
    """Compare with another release on the events that neither had learned from: those after the later cut."""
    later = epoch_seconds(test.chosen[c.TIMESTAMP]) >= other.manifest["split"]["test"]
    requests = requests_from(test.chosen[later], other.codec)
    models = {"funnel": Funnel(other.recommender)}
    theirs = _run(
        other, workspace, requests, InteractionHistory(test.events, other.codec), models, progress
    )["funnel"]
    users, values = UserBootstrap(requests.user), gains(theirs.ranks)
    return {
        "release": other.id,
        "events": len(requests),
        "users": users.size,
        "metrics": {name: paired(users, ours[name][later], values[name]) for name in PAIRED},
    }
