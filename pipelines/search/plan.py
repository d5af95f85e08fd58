"""A hyper-parameter search: the settings to choose from, and how a choice is measured."""

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
"""Called with a step (from 1 to the plan's ``steps``) and the figure so far.

Raises ``TrialPruned`` to stop the trial.
"""


class Plan(Protocol):
    """One search; it and its data are pickled for other processes."""

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
        """Return the first step at which a trial may be pruned."""

    def version(self, workspace: Workspace) -> str:
        """Return a fingerprint of all that figures depend on besides the settings.

        Trials of one version can be compared.

        Raises:
            MissingStage: there is nothing to search on yet.

        """

    def defaults(self) -> list[Params]:
        """Return the choices to start with: the present defaults."""

    def draw(self, trial: Trial) -> Params:
        """Return the settings that the sampler suggests for a trial."""

    def data(self, workspace: Workspace, progress: Progress) -> Any:
        """Return what every trial learns from and is judged by; computed once."""

    def value(self, data: Any, params: Params, folder: Path, report: Report) -> float:
        """Train with these settings, in ``folder``, and return the figure on validation.

        Raises:
            CannotLearn: they fail a check; the trial's figure is 0, and the search continues.

        """
