"""Offline evaluation as it would have been served: the test slice replayed through the real funnel.

Every positive event after the cut that is its user's first contact with the item is predicted from
what was known just before it; the model is frozen, histories and counts advance. All items that
could be had and were not seen are ranked: no sampled metrics.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from feature_repo import columns as c
from feature_repo.workspace import Workspace, write_json
from pipelines.ingest import read_events
from pipelines.metrics import K, ListCensus, accuracy, recall
from pipelines.point_in_time import PointInTime
from pipelines.requests import Journal, Requests, replay, requests_from
from pipelines.split import epoch_seconds
from pipelines.world import SESSION_GAP_S, World
from retrieval.training import Progress
from serving.catalogue import ItemTable
from serving.filters import RequestRules
from serving.recommender import Recommendation
from serving.release import EVALUATION, Release, load_release
from serving.users import UserBatch

DEPTHS = (100, 500)
_LIST = 500

Scores = npt.NDArray[np.float32]


@dataclass
class _Tally:
    """One model's places of the right item, and the census of its lists."""

    census: ListCensus
    places: list[int] = field(default_factory=list)

    def add(self, ranking: npt.NDArray[Any], right: int) -> None:
        found = np.flatnonzero(ranking == right)
        self.places.append(int(found[0]) if len(found) else -1)
        self.census.add(ranking[:K])

    def figures(self) -> dict[str, float]:
        places = np.array(self.places, dtype=np.int64)
        deep = {f"recall@{depth}": recall(places, depth) for depth in DEPTHS}
        return {**accuracy(places), **deep, **self.census.figures()}


def evaluate(workspace: Workspace, folder: Path, progress: Progress, limit: int | None = None) -> dict[str, Any]:
    """Evaluate a release, write ``evaluation.json`` into it and return it.

    Args:
        workspace: the working folder with events and features.
        folder: the release.
        progress: told after each batch.
        limit: at most so many events, evenly spaced over the test slice; by default all.

    """
    release = load_release(folder)
    events = read_events(workspace)
    time = epoch_seconds(events[c.TIMESTAMP])
    after = time >= release.manifest["split"]["test"]
    positive = after & events[c.POSITIVE].to_numpy()
    first = positive & ~events.duplicated([c.USER, c.ITEM]).to_numpy()
    chosen = np.flatnonzero(first)
    if limit is not None and len(chosen) > limit:
        chosen = chosen[np.linspace(0, len(chosen) - 1, limit).astype(np.int64)]
    requests = requests_from(events.iloc[chosen], release.codec)
    journal = Journal(events, release.codec)
    oracle = _oracle(workspace, release, journal)
    run = _Evaluation(release, events[~after], oracle)
    done = 0
    for places, users, items in replay(requests, PointInTime(workspace), release.codec, release.items, journal):
        run.batch(users, items, requests[places])
        done += len(places)
        progress("evaluating", done, len(requests))
    result: dict[str, Any] = {
        "data": release.codec.spec.name,
        "release": release.id,
        "users": len(set(requests.user)),
        "events": len(requests),
        "repeats_left_out": int(positive.sum() - first.sum()),
        "models": {name: tally.figures() for name, tally in run.tallies.items()},
        "candidates": {f"recall@{depth}": recall(np.array(run.candidate_places), depth) for depth in DEPTHS},
        "degraded": run.degraded,
    }
    if oracle is not None:
        best = result["models"]["oracle"]["ndcg@10"]
        result["share_of_best_possible"] = {n: f["ndcg@10"] / best for n, f in result["models"].items() if best}
    write_json(folder / EVALUATION, result)
    return result


class _Evaluation:
    def __init__(self, release: Release, known: pd.DataFrame, oracle: _Oracle | None) -> None:
        self.release, self.oracle = release, oracle
        items = release.codec.items
        positive = known[known[c.POSITIVE]]
        self.popularity = np.bincount(items.encode(positive[c.ITEM].tolist()), minlength=len(items)).astype(np.float64)
        self.generator = np.random.default_rng(7)
        names = ["random", "popular", "recently_popular", "two_tower", "funnel"] + (["oracle"] if oracle else [])
        self.tallies = {name: _Tally(ListCensus(self.popularity)) for name in names}
        self.candidate_places: list[int] = []
        self.degraded: dict[str, int] = {}

    def batch(self, users: UserBatch, items: ItemTable, requests: Requests) -> None:
        recommender = self.release.recommender
        rules = [RequestRules(k=_LIST) for _ in range(len(requests))]
        lists, _, vectors = recommender.recommend_ranked(users, rules, items)
        tower = vectors @ self.release.retrieval.vectors.T
        ideal = self.oracle.scores(requests) if self.oracle else None
        for row, result in enumerate(lists):
            masks = recommender.filters.removals(items, rules[row], users.seen[row], float(requests.time[row]))
            allowed = ~np.logical_or.reduce(list(masks.values()))
            right = int(requests.item[row])
            scores = {
                "random": self.generator.random(len(items)),
                "popular": self.popularity,
                "recently_popular": items.count(c.events("30d")),
                "two_tower": tower[row],
            }
            if ideal is not None:
                scores["oracle"] = ideal[row]
            for name, values in scores.items():
                self.tallies[name].add(_best(values, allowed), right)
            self.tallies["funnel"].add(result.items, right)
            self._note(result, right)

    def _note(self, result: Recommendation, right: int) -> None:
        proposed = [row for row, sources in enumerate(result.sources) if sources != ["backfill"]]
        found = np.flatnonzero(result.items[proposed] == right)
        self.candidate_places.append(int(found[0]) if len(found) else -1)
        for word in set(result.degraded) - {"few_candidates"}:  # lists of 500 are this evaluation's wish
            self.degraded[word] = self.degraded.get(word, 0) + 1


def _best(scores: npt.NDArray[Any], allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    codes = np.flatnonzero(allowed)
    values = scores[codes]
    if len(codes) > _LIST:
        top = np.argpartition(-values, _LIST)[:_LIST]
        codes, values = codes[top], values[top]
    return codes[np.lexsort((codes, -values))]


class _Oracle:
    """The synthetic world's true preferences, updated by what the session has shown so far: the best possible."""

    def __init__(self, world: World, release: Release, shift_s: int, journal: Journal) -> None:
        self._world, self._shift, self._journal = world, shift_s, journal
        self._user = {name: row for row, name in enumerate(world.user_ids)}
        self._columns = np.array([release.codec.items.code(item) for item in world.item_ids])
        self._row = np.zeros(len(release.codec.items), dtype=np.int64)
        self._row[self._columns] = np.arange(len(self._columns))
        self._view = journal.types.index("view")

    def scores(self, requests: Requests) -> Scores:
        """Return log-probabilities of the next view, float32 ``[B, N]``."""
        earlier, before = [], []
        for user, time in zip(requests.user, requests.time, strict=True):
            past = self._journal.between(user, -np.inf, time)
            viewed = past.kind == self._view
            times, items = past.time[viewed], self._row[past.item[viewed]]
            breaks = np.flatnonzero(np.diff(np.append(times, time)) > SESSION_GAP_S)
            start = int(breaks[-1]) + 1 if len(breaks) else 0
            before.append(items[:start])
            earlier.append(items[start:])
        users = np.array([self._user[user] for user in requests.user])
        scores = np.full((len(requests), len(self._row)), -np.inf, dtype=np.float32)
        scores[:, self._columns] = self._world.session_utilities(users, requests.time - self._shift, earlier, before)
        return scores


def _oracle(workspace: Workspace, release: Release, journal: Journal) -> _Oracle | None:
    truth = workspace.root / "raw" / "truth.npz"
    if release.codec.spec.name != "synthetic" or not truth.is_file():
        return None
    return _Oracle(World.load(truth), release, release.manifest["shift_s"], journal)
