"""What a search is: settings to choose from, and what a choice is worth on validation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from optuna import Trial

from feature_repo.progress import Progress
from feature_repo.workspace import Workspace

Params = dict[str, Any]
"""One choice of settings: names and JSON-like values."""

Report = Callable[[int, float], None]
"""Told a step (from 1 to the plan's ``steps``) and the figure so far; raises ``TrialPruned`` to give a trial up."""


class Plan(Protocol):
    """One search. It is sent to other processes, and so are its data."""

    @property
    def name(self) -> str:
        """Return ``towers`` or ``rankers``."""

    @property
    def figure(self) -> str:
        """Return the name of what is maximised."""

    @property
    def steps(self) -> int:
        """Return how many steps a trial reports at most."""

    @property
    def first_rung(self) -> int:
        """Return the step at which trials may be given up first."""

    def version(self, workspace: Workspace) -> str:
        """Return a fingerprint of all that figures depend on besides the settings: trials of one version compare.

        Raises:
            MissingStage: there is nothing to search on yet.

        """

    def defaults(self) -> list[Params]:
        """Return the choices to begin with: those that are the defaults now."""

    def draw(self, trial: Trial) -> Params:
        """Return the settings of a trial."""

    def data(self, workspace: Workspace, progress: Progress) -> Any:
        """Return what every trial learns from and is judged by; made once."""

    def value(self, data: Any, params: Params, folder: Path, report: Report) -> float:
        """Train with these settings, in ``folder``, and return the figure on validation.

        Raises:
            CannotLearn: they fail a check; the trial is worth 0, and the search goes on.

        """
