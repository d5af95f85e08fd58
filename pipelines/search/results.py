"""What a search found: ``tuning/<name>.json``, and the configurations that it means for a training."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from optuna.importance import get_param_importances
from optuna.trial import FrozenTrial, TrialState

from feature_repo.files import read_json, write_json
from feature_repo.sanity import CannotLearn
from feature_repo.workspace import MissingStage, Workspace
from pipelines.ingest.ingest import data_version
from pipelines.search.plan import Params, Plan
from pipelines.search.ranker_search import RankerSearch
from pipelines.search.study import DEFAULT, FAILED, SharedStudy
from pipelines.search.tower_search import TowerSearch
from ranking.config import RankerConfig
from retrieval.towers.model import TowerShape
from retrieval.towers.training import TowerTrainingConfig

_ENDED = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


@dataclass(frozen=True)
class Found:
    """The best trial of a study beside the defaults.

    Attributes:
        study: its name.
        figure: what was maximised, on validation.
        data_version: of the data it was searched on.
        trial: number of the best trial.
        value: its figure. As the best of many on one slice it is a little too good; the test slice
            was not looked at.
        settings: its settings.
        default_value: the figure of the defaults (the best kind's, where there are several); None:
            not finished.
        default_settings: the settings of that default.
        trials: how many trials ended how.
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
        return f"{self.figure} {self.value:.4f} on validation (defaults {before}), trial {self.trial} of {self.study}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def write_result(workspace: Workspace, plan: Plan, study: SharedStudy) -> Found:
    """Write the best of a study to ``tuning/<name>.json`` and return it; at least one trial is complete.

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
    found = Found(
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
    write_json(workspace.tuning / f"{plan.name}.json", found.to_dict())
    return found


def _value(trial: FrozenTrial) -> float:
    return float(trial.value or 0.0)


def _importance(study: SharedStudy, complete: list[FrozenTrial]) -> dict[str, float]:
    if len({trial.value for trial in complete}) < 2:
        return {}  # nothing differs, so nothing matters
    return {name: float(share) for name, share in get_param_importances(study.study).items()}


def read_result(workspace: Workspace, name: str) -> Found | None:
    """Return what the last search for ``towers`` or ``rankers`` found."""
    path = workspace.tuning / f"{name}.json"
    return Found(**read_json(path)) if path.is_file() else None


@dataclass(frozen=True)
class Tuned:
    """Searches whose best settings a training can take; None: not searched yet, so the defaults hold."""

    towers: Found | None
    rankers: Found | None

    @classmethod
    def of(cls, workspace: Workspace) -> Tuned:
        """Return what was found.

        Raises:
            MissingStage: nothing was searched.

        """
        found = cls(
            read_result(workspace, TowerSearch.name), read_result(workspace, RankerSearch.name)
        )
        if not found.towers and not found.rankers:
            raise MissingStage(
                f"no tuned settings in {workspace.tuning}: run 'funnel tune towers' first"
            )
        return found

    @property
    def train_config(self) -> TowerTrainingConfig | None:
        """How the towers are trained; None: by default."""
        return TowerSearch().settings(self.towers.settings)[0] if self.towers else None

    @property
    def shape(self) -> TowerShape | None:
        """What the towers are like; None: by default."""
        return TowerSearch().settings(self.towers.settings)[1] if self.towers else None

    @property
    def ranker_config(self) -> RankerConfig | None:
        """The kind of ranker to train, with its settings; None: all kinds, by default."""
        return RankerSearch().settings(self.rankers.settings) if self.rankers else None

    def describe(self, workspace: Workspace) -> list[str]:
        """Return a line for towers and for rankers that says whose settings are used."""
        lines = []
        for name, found in (("towers", self.towers), ("rankers", self.rankers)):
            if found is None:
                lines.append(f"{name}: defaults, since 'funnel tune {name}' has not been run")
            else:
                older = (
                    ""
                    if found.data_version == data_version(workspace)
                    else "; searched on earlier data"
                )
                lines.append(f"{name}: tuned, {found}{older}")
        return lines
