"""A signal that only declared features carry: spend in the last hour against items' margins.

The built-in world is lived through once more. Whoever spent more than ``LIMIT`` in the last hour
goes for items of a high margin, everybody else for the others. Margins are a table of their own,
drawn anew every ten days within pairs of equally popular items, so that neither side alone says
anything.
"""

from __future__ import annotations

import csv
import shutil
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from lightgbm import LGBMClassifier
from sklearn.metrics import roc_auc_score

from feature_repo.dataset import load_spec
from feature_repo.progress import no_progress
from feature_repo.stores.feature_store import apply, feature_store
from feature_repo.workspace import Workspace
from pipelines import display
from pipelines.evaluation.evaluate import evaluate
from pipelines.ingest.ingest import ingest
from pipelines.synthetic.generate import generate
from pipelines.synthetic.world import WorldConfig
from pipelines.training.release import make_release
from pipelines.training.release_pointer import current_release
from pipelines.training.train import TrainSettings, train
from pipelines.training.train_ranking import trained_sets
from pipelines.workflow import stages
from ranking.config import RankerConfig

LIMIT = 50.0
"""Spend in the last hour above which a user goes for high margins."""

_HOUR_S = 3_600.0
_PERIOD_S = 10 * 86_400.0
_SESSION_S = 3_000.0

FEATURES = f"""
from datetime import timedelta

import pandas as pd
from feast import FeatureService, FeatureView, Field, FileSource, StreamFeatureView
from feast.aggregation import Aggregation
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64

from feature_repo.declare import defaults, events, item, user

spend = StreamFeatureView(
    name="spend",
    entities=[user],
    source=events,
    timestamp_field="timestamp",
    tags={{"event_types": "purchase"}},
    aggregations=[Aggregation("value", "sum", time_window=timedelta(hours=1), name="spend_1h")],
)
margins = FeatureView(
    name="margins",
    entities=[item],
    source=FileSource(path="margins.parquet", timestamp_field="known_from"),
)


@on_demand_feature_view(
    sources=[spend, margins], schema=[Field(name="margin_for_spend", dtype=Float64)]
)
def wish(inputs: pd.DataFrame) -> pd.DataFrame:
    rich = (inputs["spend_1h"] > {LIMIT}) * 2.0 - 1.0
    return pd.DataFrame({{"margin_for_spend": rich * inputs["margin"]}})


ranking = FeatureService(name="ranking", features=[*defaults.ranking, spend, margins, wish])
"""


def run(root: Path, seeds: list[int], config: dict[str, Any], strength: float) -> dict[str, Any]:
    """Train with and without the features, with and without the signal, for each seed.

    Args:
        root: a folder for the worlds; an earlier run's are removed.
        seeds: of the worlds.
        config: other settings of ``WorldConfig``.
        strength: the share of views that follow the signal.

    Returns:
        NDCG@10 of the test part for each seed, and how well all other columns of the ranker's rows
        tell a wished item from another (AUC; 0.5: not at all).

    """
    shutil.rmtree(root, ignore_errors=True)
    results = []
    for seed in seeds:
        world = WorldConfig(seed=seed, **config)
        found: dict[str, Any] = {"seed": seed}
        for signal, share in (("planted", strength), ("not planted", 0.0)):
            data = root / f"{seed}-{signal.replace(' ', '-')}"
            plant(data, world, share)
            for name in ("without", "with"):
                workspace = Workspace(data / name)
                found[f"{signal}, {name}"] = _ndcg(workspace, data, features=name == "with")
            if share:
                found["auc_of_other_columns"] = _probe(Workspace(data / "with"))
        results.append(found)
        display.console.print(found)
    rows = [
        [str(found["seed"]), *(f"{v:.4f}" for v in list(found.values())[1:])] for found in results
    ]
    display.table("A planted signal, NDCG@10", ["seed", *list(results[0])[1:]], rows)
    return {"strength": strength, "limit": LIMIT, **config, "seeds": results}


def plant(folder: Path, config: WorldConfig, share: float) -> None:
    """Write a world whose views follow the signal in a share of the cases, and its margins."""
    generate(folder, config)
    rng = np.random.default_rng([config.seed, 99])
    with (folder / "events.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    items = sorted({row["item_id"] for row in rows})
    start = min(_seconds(row["timestamp"]) for row in rows) // 86_400 * 86_400
    periods = int((max(_seconds(row["timestamp"]) for row in rows) - start) // _PERIOD_S) + 1

    # Pairs of items that are viewed about as often; one of each pair has a high margin.
    views = pd.Series([row["item_id"] for row in rows]).value_counts()
    by_views = list(views.index)
    pairs = list(zip(by_views[::2], by_views[1::2], strict=False))
    twin = dict(pairs) | {second: first for first, second in pairs}
    high = {name: rng.random(periods) < 0.5 for name, _ in pairs}
    high |= {second: ~high[first] for first, second in pairs}
    _write_margins(folder, items, high, start=start, rng=rng)

    written = []
    for mine in _by_user(rows).values():
        written += _lived(mine, twin, high, start=start, share=share, rng=rng)
    written.sort(key=lambda row: (row["timestamp"], row["event_id"]))
    with (folder / "events.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(written)


def _lived(
    rows: list[dict[str, str]],
    twin: dict[str, str],
    high: dict[str, Any],
    *,
    start: float,
    share: float,
    rng: np.random.Generator,
) -> list[dict[str, str]]:
    """Return a user's events with a purchase of chance before each session, and wishes followed."""
    bought: deque[tuple[float, float]] = deque()
    swapped: dict[str, str] = {}
    lived: list[dict[str, str]] = []
    last = -np.inf
    names = list(twin)
    for row in rows:
        time = _seconds(row["timestamp"])
        if time - last > _SESSION_S:
            swapped = {}
            value = rng.uniform(80, 100) if rng.random() < 0.5 else rng.uniform(1, 20)
            at = time - rng.integers(300, 3_000)
            if at > start:
                lived.append(
                    row | {
                        "event_id": f"{row['event_id']}-before",
                        "item_id": names[rng.integers(len(names))],
                        "event_type": "purchase",
                        "timestamp": str(np.datetime64(int(at), "s")) + "Z",
                        "value": f"{value:.2f}",
                    }
                )  # fmt: skip
                bought.append((at, value))
        last = time
        item = row["item_id"]
        if row["event_type"] == "view" and item in twin:
            while bought and bought[0][0] <= time - _HOUR_S:
                bought.popleft()
            rich = sum(value for _, value in bought) > LIMIT
            wrong = high[item][int((time - start) // _PERIOD_S)] != rich
            if wrong and rng.random() < share:
                swapped[item] = twin[item]
        row = row | {"item_id": swapped.get(item, item)}
        if row["event_type"] == "purchase":
            bought.append((time, float(row["value"])))
        lived.append(row)
    return lived


def _write_margins(
    folder: Path, items: list[str], high: dict[str, Any], *, start: float, rng: np.random.Generator
) -> None:
    """Write each item's margin of every period, known from an hour before its first midnight."""
    names, times, margins = [], [], []
    for item in items:
        for period, is_high in enumerate(high.get(item, ())):
            names.append(item)
            times.append(int(start + period * _PERIOD_S - _HOUR_S) * 1_000_000)
            margins.append((1.0 if is_high else -1.0) * rng.uniform(0.5, 1.0))
    stamps = pa.array(times, pa.timestamp("us", tz="UTC"))
    table = pa.table({"item_id": names, "known_from": stamps, "margin": margins})
    pq.write_table(table, folder / "margins.parquet")
    (folder / "features.py").write_text(FEATURES, encoding="utf-8")


def _ndcg(workspace: Workspace, data: Path, *, features: bool) -> float:
    """Train and release, and return NDCG@10 of the test part."""
    spec = load_spec(data / "dataset.toml")
    if features:
        spec = spec.model_copy(update={"features": str((data / "features.py").resolve())})
    ingest(spec, data, workspace)
    stages.run_features(workspace)
    apply(feature_store(workspace), workspace)
    with display.stage(f"Train {workspace.root}") as progress:
        train(workspace, progress, TrainSettings(rankers=RankerConfig(kinds=("lightgbm",))))
        make_release(workspace)
        evaluation = evaluate(workspace, current_release(workspace), progress, baselines=False)
    return evaluation.models["funnel"]["ndcg@10"]


def _probe(workspace: Workspace) -> float:
    """Return how well a model tells wished items by all columns that are not declared, AUC."""
    sets = trained_sets(workspace, None, no_progress)
    names = sets.retrieval.codec.numeric
    rows, judged = sets.train(), sets.selection()

    def split(data: Any) -> tuple[Any, Any]:
        fits = data.numeric[:, names.index("margin_for_spend")] > 0
        known = np.isfinite(data.numeric[:, names.index("margin_for_spend")])
        declared = [names.index(n) for n in ("spend_1h", "item_margin", "margin_for_spend")]
        # The shown item itself follows the signal: only what was not chosen is asked about.
        other = known & (data.labels.sum(axis=1) == 0)
        return np.delete(data.numeric, declared, axis=1)[other], fits[other]

    model = LGBMClassifier(n_estimators=200, min_child_samples=100, verbose=-1)
    model.fit(*split(rows))
    inputs, fits = split(judged)
    return float(roc_auc_score(fits, model.predict_proba(inputs)[:, 1]))


def _by_user(rows: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    of_user: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        of_user.setdefault(row["user_id"], []).append(row)
    return of_user


def _seconds(text: str) -> float:
    return float(np.datetime64(text.removesuffix("Z"), "s").astype(np.int64))
