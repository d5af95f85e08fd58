"""The result of a search, ``tuning/<name>.json``, and the configurations it gives a training."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from optuna.importance import get_param_importances
from optuna.trial import FrozenTrial, TrialState

from feature_repo.files import read_json, write_json
from feature_repo.sanity import CannotLearn
from feature_repo.workspace import MissingStage, Workspace
from pipelines.ingest.ingested import data_version
from pipelines.search.plan import Params, Plan
from pipelines.search.ranker_search import RankerSearch
from pipelines.search.study import DEFAULT, FAILED, SharedStudy
from pipelines.search.tower_search import TowerSearch
from ranking.config import RankerConfig
from retrieval.towers.config import TowerTrainingConfig
from retrieval.towers.model import TowerShape

_ENDED = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


@dataclass(frozen=True)
class SearchResult:
    """The best trial of a study beside the defaults.

    Attributes:
        study: name of the study.
        figure: name of what was maximised, on validation.
        data_version: version of the data that was searched on.
        trial: number of the best trial.
        value: its figure. As the best of many on one part it is a little optimistic; the test part
            was not used.
        settings: its settings.
        default_value: the figure of the defaults (of the best kind, if there are several); None:
            not finished.
        default_settings: the settings of that default.
        trials: number of trials by how they ended.
        importance: share of each setting in what makes a good trial (PED-ANOVA, Watanabe et al.
            2023).

    """

    study: str
    figure: str
    data_version: str
    trial: int
    value: float
    settings: Params
    default_value: float | None
    default_settings: Params | None
    trials: dict[str, int]
    importance: dict[str, float]

    def __str__(self) -> str:
        """Return one line for a person."""
        before = "unknown" if self.default_value is None else f"{self.default_value:.4f}"
        return (
            f"{self.figure} {self.value:.4f} on validation (defaults {before}), "
            f"trial {self.trial} of {self.study}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def write_result(workspace: Workspace, plan: Plan, study: SharedStudy) -> SearchResult:
    """Write the best trial of a study to ``tuning/<name>.json`` and return it.

    At least one trial of the study is complete.

    Raises:
        CannotLearn: no trial could learn.

    """
    trials = study.study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    best = max(complete, key=_value)  # of equals the first, and the defaults are the first of all
    if reason := best.user_attrs.get(FAILED):
        raise CannotLearn(f"no trial of {study.name} could learn: {reason}")
    default = max(
        (trial for trial in complete if trial.user_attrs.get(DEFAULT)), key=_value, default=None
    )
    result = SearchResult(
        study=study.name,
        figure=plan.figure,
        data_version=data_version(workspace),
        trial=best.number,
        value=_value(best),
        settings=best.params,
        default_value=_value(default) if default else None,
        default_settings=default.params if default else None,
        trials=dict(Counter(_ENDED[trial.state] for trial in trials if trial.state in _ENDED)),
        importance=_importance(study, complete),
    )
    write_json(workspace.tuning / f"{plan.name}.json", result.to_dict())
    return result


def _value(trial: FrozenTrial) -> float:
    return float(trial.value or 0.0)


def _importance(study: SharedStudy, complete: list[FrozenTrial]) -> dict[str, float]:
    if len({trial.value for trial in complete}) < 2:
        return {}  # nothing differs, so nothing matters
    return {name: float(share) for name, share in get_param_importances(study.study).items()}


def read_result(workspace: Workspace, name: str) -> SearchResult | None:
    """Return the result of the last search for ``towers`` or ``rankers``; None: there was none."""
    path = workspace.tuning / f"{name}.json"
    return SearchResult(**read_json(path)) if path.is_file() else None


@dataclass(frozen=True)
class Tuned:
    """Searches whose best settings a training can use; None: not searched, use the defaults."""

    towers: SearchResult | None
    rankers: SearchResult | None

    @classmethod
    def of(cls, workspace: Workspace) -> Tuned:
        """Return the results of all searches.

        Raises:
            MissingStage: there was no search.

        """
        tuned = cls(
            read_result(workspace, TowerSearch.name), read_result(workspace, RankerSearch.name)
        )
        if not tuned.towers and not tuned.rankers:
            raise MissingStage(
                f"no tuned settings in {workspace.tuning}: run 'funnel tune towers' first"
            )
        return tuned

    @property
    def train_config(self) -> TowerTrainingConfig | None:
        """Return how the towers are trained; None: by default."""
        return TowerSearch().settings(self.towers.settings)[0] if self.towers else None

    @property
    def shape(self) -> TowerShape | None:
        """Return the shape of the towers; None: the default."""
        return TowerSearch().settings(self.towers.settings)[1] if self.towers else None

    @property
    def ranker_config(self) -> RankerConfig | None:
        """Return the kind of ranker to train, with its settings; None: all kinds, by default."""
        return RankerSearch().settings(self.rankers.settings) if self.rankers else None

    def describe(self, workspace: Workspace) -> list[str]:
        """Return a line for towers and for rankers that says which settings are used."""
        lines = []
        for name, result in (("towers", self.towers), ("rankers", self.rankers)):
            if result is None:
                lines.append(f"{name}: defaults, since 'funnel tune {name}' has not been run")
                continue
            same_data = result.data_version == data_version(workspace)
            lines.append(
                f"{name}: tuned, {result}{'' if same_data else '; searched on earlier data'}"
            )
        return lines
