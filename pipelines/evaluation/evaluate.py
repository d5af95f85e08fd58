"""Offline evaluation as it would have been served: the test part replayed through the real funnel.

Every positive event after the cut that is its user's first contact with the item is predicted from
what was known just before it; the model is frozen, histories and counts advance. All items that
were available and unseen are ranked: no sampled metrics. Baselines get the same events and the
same knowledge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feature_repo.arrays import Float64Array
from feature_repo.progress import Progress
from feature_repo.workspace import Workspace
from pipelines.evaluation.ablations import ablations as ablated_models
from pipelines.evaluation.baseline_tuning import TunedBaselines, tuned_baselines
from pipelines.evaluation.evaluated_models import Funnel, simple_models, two_tower_search
from pipelines.evaluation.figures import Comparison, Evaluation, Interval, PairedDifference
from pipelines.evaluation.held_out import HeldOut
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
from pipelines.evaluation.replayed_requests import (
    Lists,
    Model,
    PastRequests,
    replay_requests,
)
from pipelines.evaluation.slices import dimensions, slice_figures
from pipelines.features.point_in_time import PointInTime
from pipelines.ingest.ingested import read_events
from pipelines.training.past_requests import InteractionHistory
from serving.releases.release import Release, load_release

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
) -> Evaluation:
    """Evaluate a release, write ``evaluation.json`` into it and return it.

    Args:
        workspace: the working folder with events and features.
        folder: the release.
        progress: progress callback.
        limit: maximum test events, evenly spaced; None: all.
        baselines: also item kNN, EASE and iALS, tuned on the validation part.
        peer_minutes: also SASRec, if its environment is installed, in about that time; None: not.
        ablations: also the funnel without each of its parts.
        against: another release to compare with on the same events.

    """
    release = load_release(folder)
    other = load_release(against) if against else None
    held_out = HeldOut.of(read_events(workspace), release, limit)

    tuned = TunedBaselines()
    if baselines:
        tuned = tuned_baselines(release, held_out.events, held_out.interactions, progress)
    if peer_minutes is not None:
        tuned |= sasrec(workspace, held_out, peer_minutes, progress)

    funnel = Funnel(release.recommender)
    models = _models(workspace, held_out, tuned, funnel)
    features = PointInTime(workspace)
    ablated: dict[str, Model] = {}
    if ablations:
        ablated = ablated_models(release, features, held_out.requests, held_out.interactions)
    replayed = replay_requests(release, features, held_out.requests, held_out.interactions)
    lists = run_models(models | ablated, replayed, len(held_out.requests), progress)
    compared = _Compared.of(lists, held_out)

    parts = dimensions(workspace, held_out)
    ndcg = {name: compared.per_event[name]["ndcg@10"] for name in models}
    slices, gaps = slice_figures(parts, held_out.requests.user, ndcg, "funnel")
    figures = compared.figures(list(models))
    evaluation = Evaluation(
        data=release.codec.spec.name,
        release=release.id,
        users=compared.users.size,
        events=len(held_out.requests),
        repeats_left_out=held_out.repeats,
        models=figures,
        intervals={name: compared.intervals(name) for name in models},
        funnel_minus={
            name: compared.difference("funnel", name) for name in models if name != "funnel"
        },
        baselines=tuned.figures() if tuned else None,
        candidates={f"recall@{depth}": recall(funnel.candidate_ranks, depth) for depth in DEPTHS},
        degraded=dict(funnel.degraded),
        slices=slices,
        gaps=gaps,
        share_of_best_possible=_shares_of_oracle(figures),
        ablations=(
            {name: compared.difference(name, "funnel") for name in ablated} if ablations else None
        ),
        against=_against(features, other, compared, progress) if other else None,
    )
    evaluation.save(folder)
    return evaluation


def _models(
    workspace: Workspace, held_out: HeldOut, tuned: TunedBaselines, funnel: Funnel
) -> dict[str, Model]:
    """Return everything that is compared, by name; the oracle only where the truth is known."""
    best = oracle(workspace, held_out.release, held_out.interactions)
    return {
        **simple_models(held_out.popularity()),
        **tuned.models,
        "two_tower": two_tower_search(held_out.release),
        "funnel": funnel,
        **({"oracle": best} if best else {}),
    }


def run_models(
    models: Mapping[str, Model],
    replayed: Iterable[PastRequests],
    total: int,
    progress: Progress,
) -> dict[str, Lists]:
    """Return every model's lists for all replayed requests, of which there are ``total``."""
    lists: dict[str, list[Lists]] = {name: [] for name in models}
    done = 0
    for batch in replayed:
        for name, model in models.items():
            lists[name].append(model(batch))
        done += len(batch.requests)
        progress("evaluating", done, total)
    return {name: Lists.join(parts) for name, parts in lists.items()}


@dataclass(frozen=True)
class _Compared:
    """Every model's lists for the same ``n`` test events.

    Attributes:
        held_out: the test events.
        lists: by model.
        per_event: by model and metric, float64 ``[n]``.
        users: resamples of the users of the events.

    """

    held_out: HeldOut
    lists: dict[str, Lists]
    per_event: dict[str, dict[str, Float64Array]]
    users: UserBootstrap

    @classmethod
    def of(cls, lists: dict[str, Lists], held_out: HeldOut) -> _Compared:
        per_event = {
            name: {**gains(of.ranks), **deep_gains(of.ranks)} for name, of in lists.items()
        }
        return cls(held_out, lists, per_event, UserBootstrap(held_out.requests.user))

    def figures(self, models: list[str]) -> dict[str, dict[str, float]]:
        """Return each model's metrics: accuracy, recall at greater depths, and the lists' own."""
        release = self.held_out.release
        catalogue = Catalogue(
            self.held_out.popularity(),
            np.asarray(release.retrieval.vectors),
            release.items.categories,
        )
        return {
            name: {
                **accuracy(self.lists[name].ranks),
                **{f"recall@{depth}": recall(self.lists[name].ranks, depth) for depth in DEPTHS},
                **list_figures(self.lists[name].top, catalogue),
            }
            for name in models
        }

    def intervals(self, model: str) -> dict[str, Interval | None]:
        """Return the intervals of a model's per-event metrics."""
        values = self.per_event[model]
        draws = self.users.means(list(values.values()))
        return {name: interval(draws[:, column]) for column, name in enumerate(values)}

    def difference(self, first: str, second: str) -> PairedDifference:
        """Compare the NDCG@10 of two models event by event."""
        return paired(
            self.users, self.per_event[first]["ndcg@10"], self.per_event[second]["ndcg@10"]
        )


def _shares_of_oracle(figures: dict[str, dict[str, float]]) -> dict[str, float] | None:
    """Return each model's NDCG@10 as a share of the oracle's; None where there is no oracle."""
    best = figures.get("oracle", {}).get("ndcg@10")
    return {name: of["ndcg@10"] / best for name, of in figures.items()} if best else None


def _against(
    features: PointInTime, other: Release, compared: _Compared, progress: Progress
) -> Comparison:
    """Compare with another release on the events after the later of the two cuts.

    Neither release has learned from these.
    """
    requests, rows = compared.held_out.requests_after_cut_of(other)
    interactions = InteractionHistory(compared.held_out.events, other.codec)
    replayed = replay_requests(other, features, requests, interactions)
    lists = run_models({"funnel": Funnel(other.recommender)}, replayed, len(requests), progress)

    users = UserBootstrap(requests.user)
    ours = compared.per_event["funnel"]
    theirs = gains(lists["funnel"].ranks)
    return Comparison(
        release=other.id,
        events=len(requests),
        users=users.size,
        metrics={name: paired(users, ours[name][rows], theirs[name]) for name in PAIRED},
    )
