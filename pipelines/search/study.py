"""One Optuna study that several processes share, and that goes on where a killed one was."""

from __future__ import annotations

import fcntl
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna import Trial
from optuna.trial import FrozenTrial, TrialState

from feature_repo.workspace import Workspace
from pipelines.search.plan import Params, Plan

DEFAULT, FAILED, FIXED, RETRY, WORKER = "default", "failed", "fixed", "retry", "worker"
"""Names in a trial's ``user_attrs``: is it a default, why it could not learn, its settings if given, how often tried
again, who runs it."""

_MOST_RETRIES = 2
_STARTUP = 5
"""Random trials before TPE begins. Hyperband lets each of its brackets learn by itself, and few trials are common."""

_LOCK_WAIT_S = 60


@dataclass(frozen=True)
class SearchConfig:
    """How long to search: until there are so many trials, pruned ones among them; after ``minutes`` none begins."""

    trials: int = 30
    jobs: int = 1
    minutes: float | None = None
    seed: int = 7


class SharedStudy:
    """A study in ``tuning/studies.db``, as one of its processes sees it.

    Each process holds a lock on a file of its own for as long as it lives, so a trial that is
    marked as
    running whose process holds no lock any more was killed: there is no time-out to wait for.
    """

    def __init__(self, workspace: Workspace, plan: Plan, config: SearchConfig, name: str) -> None:
        """Open the study of this name, or begin it with the plan's defaults."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.name = name
        self.folder = workspace.tuning / self.name
        self._config = config
        (self.folder / "workers").mkdir(parents=True, exist_ok=True)
        self._lock_path = workspace.tuning / ".lock"
        self._worker = uuid.uuid4().hex
        self._alive = (self.folder / "workers" / self._worker).open("wb")
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        pruner = optuna.pruners.HyperbandPruner(plan.first_rung, plan.steps, reduction_factor=3)
        with self._alone():
            storage = optuna.storages.RDBStorage(
                f"sqlite:///{(workspace.tuning / 'studies.db').resolve()}",
                engine_kwargs={"connect_args": {"timeout": _LOCK_WAIT_S}},
            )
            self.study = optuna.create_study(
                storage=storage,
                study_name=self.name,
                direction="maximize",
                pruner=pruner,
                load_if_exists=True,
            )
            if not self.study.trials:
                for params in plan.defaults():
                    self._enqueue(params, {DEFAULT: True})

    def close(self) -> None:
        """Let others know that this process runs no trial any more."""
        self._alive.close()
        (self.folder / "workers" / self._worker).unlink(missing_ok=True)

    def trial_folder(self, number: int) -> Path:
        """Return where a trial keeps its checkpoints while it runs."""
        return self.folder / f"trial-{number}"

    def finished(self) -> int:
        """Return how many trials have ended by themselves."""
        return len(
            self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        )

    def next(self) -> Trial | None:
        """Return a trial to run, or None if so many have begun as are wanted."""
        with self._alone():
            self._retry_killed()
            begun = self.finished() + len(
                self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            )
            if begun >= self._config.trials:
                return None
            trial = self.study.ask()
            trial.set_user_attr(WORKER, self._worker)
        # A sampler for each trial: what it draws depends on the trials before it, not on how often
        # we were stopped.
        seed = self._config.seed * 100_003 + trial.number
        self.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP)
        return trial

    def _retry_killed(self) -> None:
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not self._runs(trial):
                self.study.tell(trial.number, state=TrialState.FAIL)
                shutil.rmtree(self.trial_folder(trial.number), ignore_errors=True)
                retries = trial.user_attrs.get(RETRY, 0)
                params = {**trial.user_attrs.get(FIXED, {}), **trial.params}
                if params and retries < _MOST_RETRIES:
                    kept = {
                        name: trial.user_attrs[name]
                        for name in (DEFAULT,)
                        if name in trial.user_attrs
                    }
                    self._enqueue(params, {RETRY: retries + 1, **kept})

    def _runs(self, trial: FrozenTrial) -> bool:
        path = self.folder / "workers" / str(trial.user_attrs.get(WORKER))
        if not path.is_file():
            return False
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        path.unlink(missing_ok=True)
        return False

    def _enqueue(self, params: Params, attributes: Params) -> None:
        self.study.enqueue_trial(params, user_attrs={FIXED: params, **attributes})

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._lock_path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
