"""``funnel compress``: smaller and faster versions of trained rankers, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from feature_repo.files import staged_folder, write_json
from feature_repo.progress import Progress
from feature_repo.workspace import Workspace
from pipelines.display import table
from pipelines.training.config import SampleConfig
from pipelines.training.ranking_sets import row_schema
from pipelines.training.train_ranking import trained_sets
from ranking.config import RankerConfig
from ranking.data import RankingData
from ranking.inspection.latency import latencies, one_request
from ranking.models import Ranker
from ranking.models.dcn import DcnRanker
from ranking.models.scorer import CalibratedRanker
from ranking.report import KindReport, RankerReport
from ranking.rows import ItemRows
from ranking.training.distil import distil, student_config
from ranking.training.measure import measure
from ranking.training.task import FitTask
from ranking.transform import RowTransform

REPORT = "compressed.json"
CANDIDATES = 500
_ROUNDS = 200


def compress(
    workspace: Workspace, sample: SampleConfig | None, progress: Progress
) -> dict[str, Any]:
    """Distil the ranker that would be released and the network, and quantise the network to int8.

    Each becomes a folder in ``models/ranking`` beside its original, for ``funnel release
    --ranker``; ``models/ranking/compressed.json`` has the figures.

    Args:
        workspace: the working folder, trained.
        sample: how many requests the sets take; None: as in training, so that students learn from
            the rows that their teachers learned from.
        progress: progress callback.

    Raises:
        MissingStage: nothing is trained yet.

    """
    sets = trained_sets(workspace, sample, progress)
    folder = workspace.models / "ranking"
    report = RankerReport.load(folder)
    rows = _Rows(sets.train(), sets.calibrate(), sets.selection())
    pairs, items = one_request(
        rows.selection,
        CANDIDATES,
        _item_columns(sets.retrieval.items.rows),
        row_schema(sets.retrieval.codec).pair_columns,
    )

    figures: dict[str, Any] = {}
    for kind in dict.fromkeys((report.best, *({"dcn"} & set(report.kinds)))):
        progress(f"compressing {kind}", len(figures), 0)
        rankers, reports = _compress_kind(kind, folder, rows, report)

        times = latencies(rankers, pairs, items, _ROUNDS)
        for name, measured in reports.items():
            figures[name] = {
                "of": kind,
                "bytes": _model_bytes(folder / name),
                "ms": times[name],
                "speed": times[kind] / times[name],
                **measured.to_dict(),
            }

    result = {"ndcg_k": report.config.ndcg_k, "candidates": CANDIDATES, "rankers": figures}
    write_json(folder / REPORT, result)
    return result


@dataclass(frozen=True)
class _Rows:
    """The sets that rankers learn from, are calibrated on, and are compared by."""

    train: RankingData
    calibrate: RankingData
    selection: RankingData


def _compress_kind(
    kind: str, folder: Path, rows: _Rows, report: RankerReport
) -> tuple[dict[str, CalibratedRanker], dict[str, KindReport]]:
    """Save a kind's compressed versions; return the kind and them by name, and their figures."""
    original = CalibratedRanker.load(folder / kind)
    rankers = {kind: original}
    configs = {}
    for name, ranker, config in compressed(original, rows.train, rows.calibrate, report.config):
        configs[name] = config
        rankers[name] = CalibratedRanker.fit(ranker, rows.calibrate)  # probabilities differ

    version = report.kinds[kind].version
    reports = {
        name: measure(ranker, rows.selection, report.config.ndcg_k, version)[0]
        for name, ranker in rankers.items()
    }
    for name, config in configs.items():
        save(rankers[name], folder / name, original=kind, report=reports[name], config=config)
    return rankers, reports


def compressed(
    original: CalibratedRanker, train: RankingData, calibrate: RankingData, config: RankerConfig
) -> Iterator[tuple[str, Ranker, RankerConfig]]:
    """Yield a ranker's compressed versions: name, ranker and its settings.

    A learned ranker gives a distilled student; a network also gives dynamic and static int8.

    Args:
        original: the ranker to compress.
        train: rows to learn from.
        calibrate: rows for early stopping.
        config: what the original was trained with.

    """
    kind = original.kind
    if kind in ("lightgbm", "lambdarank", "dcn"):
        transform = RowTransform.fit(train.numeric)
        task = FitTask(train, calibrate, transform, original.schema, student_config(config))
        yield f"{kind}-student", distil(original, task, lambda *_: None), task.config

    if isinstance(original.ranker, DcnRanker):
        from ranking.training.quantise import dynamic_int8, static_int8

        yield f"{kind}-int8-dynamic", dynamic_int8(original.ranker), config
        yield f"{kind}-int8-static", static_int8(original.ranker, train), config


def save(
    ranker: CalibratedRanker,
    folder: Path,
    *,
    original: str,
    report: KindReport,
    config: RankerConfig,
) -> None:
    """Write a ranker in one step, with its original's name, its figures and its settings."""
    with staged_folder(folder) as staging:
        ranker.save(staging)
        write_json(
            staging / "manifest.json",
            {"of": original, "report": report.to_dict(), "config": asdict(config)},
        )


def _model_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.name != "manifest.json")


def show(result: dict[str, Any]) -> None:
    """Print every compressed ranker below its original."""
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
