"""The rankers' search: NDCG on the selection part, by which kinds are compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from optuna import Trial

from feature_repo.files import read_json
from feature_repo.hashing import fingerprint
from feature_repo.progress import Progress
from feature_repo.workspace import MissingStage, Workspace
from pipelines.ingest.ingested import data_version, read_events
from pipelines.search.plan import Params, Report
from pipelines.training.config import SampleConfig
from pipelines.training.ranking_sets import RankingSets, row_schema
from pipelines.training.split import Split
from ranking.config import RankerConfig
from ranking.training.train_rankers import RankerSets, train_rankers
from serving.releases.release import load_retrieval

KINDS = ("lambdarank", "lightgbm", "dcn")
TREES = ("learning_rate", "leaves", "min_rows_in_leaf", "feature_share", "l2")
DCN = ("structure", "cross_layers", "hidden", "embedding", "learning_rate", "weight_decay")
HIDDEN = ("64,32", "128,64", "256,128", "256,128,64")
_LARGEST_LEAVES = 64
"""Trees with more leaves are scored by the slower method (``TreeRanker.for_items``)."""


@dataclass(frozen=True)
class RankerSearch:
    """See ``Plan``: kinds and settings around ``config``, on rows sampled by ``sample``."""

    config: RankerConfig = field(default_factory=RankerConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    name = "rankers"
    steps = 10
    first_rung = 3

    @property
    def figure(self) -> str:
        """See ``Plan``."""
        return f"ndcg@{self.config.ndcg_k}"

    def version(self, workspace: Workspace) -> str:
        """See ``Plan``: of the data and of the candidate generator."""
        data = data_version(workspace)
        report = workspace.models / "retrieval" / "report.json"
        if not report.is_file():
            raise MissingStage(f"no trained towers in {workspace.models}: run 'funnel train' first")
        split = Split.by_time(read_events(workspace)).to_dict()
        if read_json(workspace.models / "split.json") != split:
            raise MissingStage(
                f"no towers of the newest data in {workspace.models}: run 'funnel train' first"
            )
        return fingerprint(
            data, split, read_json(report)["version"], asdict(self.config), self.sample.to_dict()
        )

    def defaults(self) -> list[Params]:
        """See ``Plan``: the default of each kind that is searched."""
        trees = {f"trees.{name}": getattr(self.config.trees, name) for name in TREES}
        dcn = {f"dcn.{name}": getattr(self.config.dcn, name) for name in DCN}
        dcn["dcn.hidden"] = ",".join(map(str, self.config.dcn.hidden))
        return [{"kind": kind} | (dcn if kind == "dcn" else trees) for kind in KINDS]

    def draw(self, trial: Trial) -> Params:
        """See ``Plan``."""
        kind = trial.suggest_categorical("kind", KINDS)
        if kind == "dcn":
            return {
                "kind": kind,
                "dcn.structure": trial.suggest_categorical(
                    "dcn.structure", ("parallel", "stacked")
                ),
                "dcn.cross_layers": trial.suggest_int("dcn.cross_layers", 1, 4),
                "dcn.hidden": trial.suggest_categorical("dcn.hidden", HIDDEN),
                "dcn.embedding": trial.suggest_int("dcn.embedding", 4, 16, step=4),
                "dcn.learning_rate": trial.suggest_float("dcn.learning_rate", 5e-4, 2e-2, log=True),
                "dcn.weight_decay": trial.suggest_float("dcn.weight_decay", 1e-6, 1e-1, log=True),
            }
        return {
            "kind": kind,
            "trees.learning_rate": trial.suggest_float("trees.learning_rate", 0.01, 0.3, log=True),
            "trees.leaves": trial.suggest_int("trees.leaves", 8, _LARGEST_LEAVES, log=True),
            "trees.min_rows_in_leaf": trial.suggest_int(
                "trees.min_rows_in_leaf", 10, 1_000, log=True
            ),
            "trees.feature_share": trial.suggest_float("trees.feature_share", 0.2, 1.0),
            "trees.l2": trial.suggest_float("trees.l2", 1e-2, 100.0, log=True),
        }

    def settings(self, params: Params) -> RankerConfig:
        """Return the configuration of a choice, which trains its kind alone."""
        parts: dict[str, dict[str, Any]] = {"trees": {}, "dcn": {}}
        for name, value in params.items():
            if name != "kind":
                part, _, setting = name.partition(".")
                parts[part][setting] = (
                    tuple(map(int, value.split(","))) if setting == "hidden" else value
                )
        return replace(
            self.config,
            kinds=(params["kind"],),
            trees=replace(self.config.trees, **parts["trees"]),
            dcn=replace(self.config.dcn, **parts["dcn"]),
        )

    def data(self, workspace: Workspace, progress: Progress) -> RankerSets:
        """See ``Plan``."""
        events = read_events(workspace)
        retrieval = load_retrieval(workspace.models / "retrieval")
        sets = RankingSets(
            workspace,
            retrieval,
            events,
            Split.by_time(events),
            sample=self.sample,
            progress=progress,
        )
        return RankerSets(
            sets.train(), sets.calibrate(), sets.selection(), row_schema(retrieval.codec)
        )

    def value(self, data: RankerSets, params: Params, folder: Path, report: Report) -> float:
        """See ``Plan``: the NDCG that a training would report of this kind.

        A kind that is judged by NDCG while it learns reports tenths of its rounds or steps.
        LightGBM with a booster a head is judged by log loss there, which does not compare, so it is
        always trained to its end.
        """
        best = 0.0
        last = 0

        def log(_: str, metrics: dict[str, float]) -> None:
            nonlocal best, last
            if "watch_ndcg" in metrics:
                best = max(best, metrics["watch_ndcg"])
                if (step := round(metrics["done"] * self.steps)) > last:
                    report(step, best)
                    last = step

        config = self.settings(params)
        report_of_kinds = train_rankers(data, folder, config, log)
        return report_of_kinds.kinds[params["kind"]].ndcg or 0.0
