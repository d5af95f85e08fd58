"""``funnel importance``: which features the served ranker depends on, and its calibration."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from feature_repo.files import write_json
from feature_repo.progress import Progress
from feature_repo.workspace import Workspace
from pipelines.display import table
from pipelines.ingest.ingested import read_events
from pipelines.training.config import SampleConfig
from pipelines.training.ranking_sets import RankingSets
from pipelines.training.release_pointer import current_release
from pipelines.training.split import Split
from ranking.inspection.importance import permutation_importance, with_relevant_rows
from serving.releases.release import load_release

_SEED = 11


def importance(
    workspace: Workspace, *, requests: int, repeats: int, k: int, progress: Progress
) -> dict[str, Any]:
    """Measure the current release's ranker on requests of the selection split; keep the result.

    It is written to ``releases/importance-<id>.json``, beside the release: a release's own files
    are what was released.

    Args:
        workspace: the working folder.
        requests: maximum requests to sample; those whose item was a candidate are measured.
        repeats: permutations of every column.
        k: length of the lists that are judged.
        progress: progress callback.

    Raises:
        MissingStage: there is no release.
        BadRelease: it cannot be loaded.

    """
    release = load_release(current_release(workspace))
    data = RankingSets(
        workspace,
        release.retrieval,
        read_events(workspace),
        Split.from_dict(release.manifest.split),
        sample=SampleConfig(selection_requests=requests),
        progress=progress,
    ).selection()
    ranker = release.recommender.ranker

    def report(done: int, total: int) -> None:
        progress("permuting columns", done, total)

    base, columns = permutation_importance(
        ranker, data, k=k, repeats=repeats, seed=_SEED, progress=report
    )
    result = {
        "release": release.id,
        "ranker": ranker.kind,
        f"ndcg@{k}": base,
        "requests": len(with_relevant_rows(data, ranker.schema).group_sizes()),
        "repeats": repeats,
        "features": [asdict(column) for column in columns],
        "calibration": ranker.calibration_curves(data),
    }
    write_json(workspace.releases / f"importance-{release.id}.json", result)
    return result


def show(result: dict[str, Any], k: int) -> None:
    """Print the columns, the most important first, and the calibration of every head."""
    rows = [
        [
            one["name"],
            one["drop"],
            one["spread"],
            one["permuted"],
            "" if one["gain"] is None else one["gain"],
        ]
        for one in result["features"]
    ]
    title = f"Features of {result['ranker']}, NDCG@{k} {result[f'ndcg@{k}']:.4f}"
    table(title, ["", f"drop of NDCG@{k}", "spread", "permuted", "gain"], rows)
    for head, stages in result["calibration"].items():
        pairs = zip(stages["raw"], stages["calibrated"], strict=True)
        bins = [
            [raw["rows"], raw["predicted"], raw["rate"], fit["predicted"], fit["rate"]]
            for raw, fit in pairs
        ]
        table(f"Calibration: {head}", ["rows", "raw", "rate", "calibrated", "rate "], bins)
