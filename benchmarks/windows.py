"""What windows of a user's newest events are worth to the ranker, on data that somebody brings.

They are the counts of ``user_recent``: by event type over ten minutes, an hour and a day. For each
seed the towers are trained once, so both rankers order the same candidates; only one has the counts
as columns. The rankers are compared on the selection part, and each once on the test part.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from feature_repo.arrays import Float64Array
from feature_repo.dataset import DatasetSpec, SpecError
from feature_repo.hashing import file_hash
from feature_repo.progress import Progress
from feature_repo.stores.feature_store import apply, feature_store
from feature_repo.workspace import Workspace
from pipelines import display
from pipelines.evaluation.evaluate import run_models
from pipelines.evaluation.evaluated_models import Funnel
from pipelines.evaluation.held_out import HeldOut
from pipelines.evaluation.intervals import UserBootstrap, paired
from pipelines.evaluation.metrics import gains
from pipelines.evaluation.replayed_requests import replay_requests
from pipelines.features.point_in_time import PointInTime
from pipelines.ingest.delimited import csv_header
from pipelines.ingest.ingest import ingest
from pipelines.ingest.ingested import read_events
from pipelines.synthetic.generate import generate
from pipelines.synthetic.world import BUILT_IN
from pipelines.training.config import SampleConfig
from pipelines.training.release import make_release
from pipelines.training.release_pointer import current_release
from pipelines.training.train import TrainSettings, train
from pipelines.workflow import stages
from pipelines.workflow.data_sets import find_spec
from ranking.config import RankerConfig
from retrieval.towers.config import TowerTrainingConfig
from serving.releases.release import load_release

_FEATURES = """from feast import FeatureService

from feature_repo.declare import defaults

ranking = FeatureService(name="ranking", features=[*defaults.ranking, defaults["user_recent"]])
"""


class Outcome(NamedTuple):
    """What one ranker reached.

    Attributes:
        validation: NDCG@10 on the selection part.
        users: the user of each test event ``[n]``.
        ndcg: NDCG@10 of each test event, float64 ``[n]``.
        vectors: hash of the items' vectors.

    """

    validation: float
    users: Any
    ndcg: Float64Array
    vectors: str


def run(
    root: Path,
    data: str,
    data_dir: Path | None,
    *,
    seeds: Sequence[int],
    users: int | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Train with and without the windows for each seed, and compare.

    Args:
        root: a folder for data and models; those of an earlier run are removed.
        data: name of a known data set, or path of a ``dataset.toml``.
        data_dir: folder of its files; None: a built-in world is generated.
        seeds: of towers, samples and rankers.
        users: take the events of so many users; None: of all.
        limit: maximum test events, evenly spaced; None: all.

    Returns:
        each seed's NDCG@10 of the test and of the selection part, and the paired differences.

    Raises:
        SpecError: the data set is not known, or its files are missing.

    """
    shutil.rmtree(root, ignore_errors=True)
    spec = find_spec(data)
    folder = _data_folder(root / "data", data, data_dir, spec=spec, users=users)
    root.mkdir(exist_ok=True, parents=True)
    file = root / "features.py"
    file.write_text(_FEATURES, encoding="utf-8")
    declared = spec.model_copy(update={"features": str(file)})

    # Tables of views that are not declared do no harm: they are made once.
    workspace = Workspace(root / "work")
    ingest(declared, folder, workspace)
    stages.run_features(workspace)

    pairs = []
    for seed in seeds:
        without, with_them = [_outcome(workspace, one, folder, seed=seed, limit=limit)
                              for one in (spec, declared)]  # fmt: skip
        if without.vectors != with_them.vectors:
            raise RuntimeError("the towers were trained again: the rankers had other candidates")
        pairs.append((without, with_them))
        display.console.print(_compared([seed], pairs[-1:])["seeds"][0])
    figures = {"data": data, "users": users, "limit": limit, **_compared(seeds, pairs)}
    _show(figures)
    return figures


def _data_folder(
    folder: Path, data: str, data_dir: Path | None, *, spec: DatasetSpec, users: int | None
) -> Path:
    """Return the folder with the files to ingest: generated, sampled, or as they were given."""
    if data_dir is None:
        if data not in BUILT_IN:
            raise SpecError(f"'{data}' needs its files: give --data-dir")
        generate(folder, BUILT_IN[data], data)
        data_dir = folder
    return data_dir if users is None else sample_users(spec, data_dir, users, folder / "sample")


def sample_users(spec: DatasetSpec, data_dir: Path, users: int, folder: Path) -> Path:
    """Copy a data set with the events of so many users, drawn at random.

    Args:
        spec: of the data set. Its events are one file of separated values whose columns up to the
            user's are never quoted.
        data_dir: the whole data set.
        users: how many users to draw.
        folder: where the copy is written.

    """
    (source,) = spec.events.find(data_dir)
    lines = source.read_text(encoding=spec.events.encoding).splitlines(keepends=True)
    header = [] if spec.events.columns else [lines.pop(0)]
    column = csv_header(source, spec.events).index(spec.events.user)
    of_line = [line.split(spec.events.separator)[column] for line in lines]

    names = sorted(set(of_line))
    drawn = np.random.default_rng(0).permutation(len(names))[:users]
    chosen = {names[number] for number in drawn}
    kept = [line for line, user in zip(lines, of_line, strict=True) if user in chosen]
    folder.mkdir(parents=True)
    for file in (path for path in data_dir.iterdir() if path.is_file() and path != source):
        shutil.copy(file, folder)
    (folder / source.name).write_text("".join(header + kept), encoding=spec.events.encoding)
    return folder


def _outcome(
    workspace: Workspace, spec: DatasetSpec, folder: Path, *, seed: int, limit: int | None
) -> Outcome:
    """Train with what a spec declares, release, and replay the test part.

    Towers of this seed that are there already are kept, since they read nothing declared.
    """
    ingest(spec, folder, workspace)  # no event is new; the spec is
    apply(feature_store(workspace), workspace)
    settings = TrainSettings(
        towers=TowerTrainingConfig(seed=seed),
        sample=SampleConfig(seed=seed),
        rankers=RankerConfig(kinds=("lightgbm",), seed=seed),
    )
    name = "with" if spec.features else "without"
    with display.stage(f"Train {name} windows, seed {seed}") as progress:
        report = train(workspace, progress, settings)
        make_release(workspace)
        users, ndcg = _replayed(workspace, limit, progress)
    vectors = file_hash(workspace.models / "retrieval" / "item_vectors.npy")
    return Outcome(report.kinds["lightgbm"].ndcg or 0.0, users, ndcg, vectors)


def _replayed(
    workspace: Workspace, limit: int | None, progress: Progress
) -> tuple[Any, Float64Array]:
    """Return the user and the NDCG@10 of each test event."""
    release = load_release(current_release(workspace))
    held_out = HeldOut.of(read_events(workspace), release, limit)
    replayed = replay_requests(
        release, PointInTime(workspace), held_out.requests, held_out.interactions
    )
    models = {"funnel": Funnel(release.recommender)}
    lists = run_models(models, replayed, len(held_out.requests), progress)
    return held_out.requests.user, gains(lists["funnel"].ranks)["ndcg@10"]


def _compared(seeds: Sequence[int], pairs: list[tuple[Outcome, Outcome]]) -> dict[str, Any]:
    """Return the figures of each seed, and of each event's mean over the seeds."""
    users = pairs[0][0].users
    bootstrap = UserBootstrap(users)

    def difference(chosen: list[tuple[Outcome, Outcome]]) -> dict[str, Any]:
        first = np.mean([with_them.ndcg for _, with_them in chosen], axis=0)
        second = np.mean([without.ndcg for without, _ in chosen], axis=0)
        return paired(bootstrap, first, second).model_dump()

    found = [
        {
            "seed": seed,
            "validation_without": without.validation,
            "validation_with": with_them.validation,
            "test": difference([(without, with_them)]),
        }
        for seed, (without, with_them) in zip(seeds, pairs, strict=True)
    ]
    return {
        "test_events": len(users),
        "test_users": bootstrap.size,
        "seeds": found,
        "all_seeds": difference(pairs),
    }


def _rows(figures: dict[str, Any]) -> Iterator[list[str]]:
    for found in figures["seeds"]:
        validation = (found["validation_without"], found["validation_with"])
        yield [str(found["seed"]), *(f"{value:.4f}" for value in validation), *_row(found["test"])]
    yield ["all", "", "", *_row(figures["all_seeds"])]


def _row(test: dict[str, Any]) -> list[str]:
    low, high = test["interval"] or (np.nan, np.nan)
    means = [f"{test['second']:.4f}", f"{test['first']:.4f}"]
    return [*means, f"{test['difference']:+.4f}", f"{low:+.4f} to {high:+.4f}"]


def _show(figures: dict[str, Any]) -> None:
    columns = ["seed", "validation, without", "with", "test, without", "with", "difference", "95%"]
    title = f"Windows on {figures['data']}, NDCG@10, {figures['test_events']:,} events"
    display.table(title, columns, list(_rows(figures)))
