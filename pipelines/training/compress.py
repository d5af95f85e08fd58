"""``funnel compress``: smaller and faster rankers made of trained ones, and what they cost in quality."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from feature_repo.workspace import Workspace, staged_folder, write_json
from pipelines.display import table
from pipelines.training.train_ranking import SampleConfig, trained_sets
from ranking.config import RankerConfig
from ranking.data import RankingData
from ranking.inspection.latency import latencies, one_request
from ranking.models import Ranker
from ranking.models.dcn import DcnRanker
from ranking.models.scorer import CalibratedRanker
from ranking.rows import ItemRows
from ranking.training.distil import distil, student_config
from ranking.training.fit import Task
from ranking.training.train_rankers import KindReport, RankerReport, measure
from ranking.transform import RowTransform
from retrieval.towers.training import Progress

REPORT = "compressed.json"
CANDIDATES = 500
_ROUNDS = 200


def compress(
    workspace: Workspace, sample: SampleConfig | None, progress: Progress
) -> dict[str, Any]:
    """Make students of the ranker that would be released and of the network, and int8 networks.

    Each becomes a folder in ``models/ranking`` beside the kind that it was made of, for ``funnel
    release --ranker``; ``models/ranking/compressed.json`` has the figures.

    Args:
        workspace: the working folder, trained.
        sample: how many requests the sets take; None: as in training, else students learn from
            other rows.
        progress: told what is done.

    Raises:
        MissingStage: nothing is trained yet.

    """
    sets = trained_sets(workspace, sample, progress)
    folder = workspace.models / "ranking"
    report = RankerReport.load(folder)
    train, calibrate, choose = sets.train(), sets.calibrate(), sets.choose()
    pairs, items = one_request(choose, CANDIDATES, _item_columns(sets.retrieval.items.rows))
    found: dict[str, Any] = {}
    for kind in dict.fromkeys((report.best, *({"dcn"} & set(report.kinds)))):
        progress(f"compressing {kind}", len(found), 0)
        original = CalibratedRanker.load(folder / kind)
        rankers, settings = {kind: original}, {}
        for name, ranker, config in compressed(original, train, calibrate, report.config):
            settings[name] = config
            rankers[name] = CalibratedRanker.fit(
                ranker, calibrate
            )  # its probabilities are not the original's
        version = report.kinds[kind].version
        figures = {
            name: measure(one, choose, report.config.ndcg_k, version, {})[0]
            for name, one in rankers.items()
        }
        for name, config in settings.items():
            save(rankers[name], folder / name, kind, figures[name], config)
        times = latencies(rankers, pairs, items, _ROUNDS)
        for name, figure in figures.items():
            size = sum(
                path.stat().st_size
                for path in (folder / name).iterdir()
                if path.name != "manifest.json"
            )
            found[name] = {
                "of": kind,
                "bytes": size,
                "ms": times[name],
                "speed": times[kind] / times[name],
            }
            found[name] |= asdict(figure)
    result = {"ndcg_k": report.config.ndcg_k, "candidates": CANDIDATES, "rankers": found}
    write_json(folder / REPORT, result)
    return result


def compressed(
    original: CalibratedRanker, train: RankingData, calibrate: RankingData, config: RankerConfig
) -> Iterator[tuple[str, Ranker, RankerConfig]]:
    """Yield a student of a learnt ranker, and of a network also what int8 makes of it: name, ranker, its settings.

    ``config``: what the original was trained with.
    """
    kind = original.kind
    if kind in ("lightgbm", "lambdarank", "dcn"):
        transform = RowTransform.fit(train.numeric)
        task = Task(train, calibrate, transform, original.schema, student_config(config))
        yield f"{kind}-student", distil(original, task, lambda *_: None), task.config
    if isinstance(original.ranker, DcnRanker):
        from ranking.training.quantise import dynamic_int8, static_int8

        yield f"{kind}-int8-dynamic", dynamic_int8(original.ranker), config
        yield f"{kind}-int8-static", static_int8(original.ranker, train), config


def save(
    ranker: CalibratedRanker, folder: Path, of: str, report: KindReport, config: RankerConfig
) -> None:
    """Write a ranker in one step, with the version of what it was made of and its settings."""
    with staged_folder(folder) as staging:
        ranker.save(staging)
        write_json(
            staging / "manifest.json",
            {"of": of, "report": asdict(report), "config": asdict(config)},
        )


def show(result: dict[str, Any]) -> None:
    """Print every ranker below the one that it was made of."""
    rows = []
    for name, one in result["rankers"].items():
        head = next(iter(one["heads"].values()))
        title = name if name == one["of"] else f"  {name}"
        rows.append(
            [
                title,
                one["bytes"],
                one["ms"],
                f"{one['speed']:.2f}",
                one["ndcg"],
                head["auc"],
                head["log_loss"],
            ]
        )
    columns = [
        "",
        "bytes",
        f"ms for {result['candidates']}",
        "times as fast",
        f"NDCG@{result['ndcg_k']}",
    ]
    first = next(iter(next(iter(result["rankers"].values()))["heads"]))
    table("Compressed rankers on validation", [*columns, f"AUC {first}", "log loss"], rows)


def _item_columns(items: ItemRows) -> tuple[int, int]:
    return items.numeric.shape[1], items.categorical.shape[1]
