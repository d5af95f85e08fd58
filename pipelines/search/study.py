"""One Optuna study that several processes share, and that continues after a kill."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna import Trial
from optuna.trial import FrozenTrial, TrialState

from feature_repo.files import LockHeld, lock, locked
from feature_repo.workspace import Workspace
from pipelines.search.plan import Params, Plan

DEFAULT, FAILED, FIXED, RETRY, WORKER = "default", "failed", "fixed", "retry", "worker"
"""Names in a trial's ``user_attrs``.

Whether it is a default, why it could not learn, its settings if given, the number of retries, and
which process runs it.
"""

_MAX_RETRIES = 2
_RANDOM_TRIALS = 5
"""Random trials before TPE starts; each bracket of Hyperband learns by itself from few trials."""

_LOCK_WAIT_S = 60


@dataclass(frozen=True)
class SearchConfig:
    """How long to search.

    Attributes:
        trials: number of finished trials, pruned ones included.
        jobs: number of processes.
        minutes: no trial starts later than this; None: no limit.
        seed: random seed of the sampler.

    """

    trials: int = 30
    jobs: int = 1
    minutes: float | None = None
    seed: int = 7


class SharedStudy:
    """A study in ``tuning/studies.db``, as one of its processes sees it.

    Each process holds a lock on a file of its own while it lives. A trial that is marked as running
    but whose process holds no lock was killed: there is no time-out to wait for.
    """

    def __init__(self, workspace: Workspace, plan: Plan, config: SearchConfig, name: str) -> None:
        """Open the study of this name, or create it with the plan's defaults."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.name = name
        self.folder = workspace.tuning / self.name
        self._config = config
        (self.folder / "workers").mkdir(parents=True, exist_ok=True)
        self._lock_path = workspace.tuning / ".lock"
        self._worker = uuid.uuid4().hex
        self._worker_lock = (self.folder / "workers" / self._worker).open("wb")
        lock(self._worker_lock)
        pruner = optuna.pruners.HyperbandPruner(plan.first_rung, plan.steps, reduction_factor=3)
        with self._exclusive():
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
        """Release the lock, which tells others that this process runs no trial any more."""
        self._worker_lock.close()
        (self.folder / "workers" / self._worker).unlink(missing_ok=True)

    def trial_folder(self, number: int) -> Path:
        """Return where a trial keeps its checkpoints while it runs."""
        return self.folder / f"trial-{number}"

    def finished(self) -> int:
        """Return the number of trials that were completed or pruned."""
        return len(
            self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        )

    def next(self) -> Trial | None:
        """Return a trial to run, or None if enough have started."""
        with self._exclusive():
            self._retry_killed()
            running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if self.finished() + len(running) >= self._config.trials:
                return None
            trial = self.study.ask()
            trial.set_user_attr(WORKER, self._worker)
        # A sampler for each trial, so that its draws depend on the trials before it and not on how
        # often the search was stopped.
        seed = self._config.seed * 100_003 + trial.number
        self.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_RANDOM_TRIALS)
        return trial

    def _retry_killed(self) -> None:
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not self._is_alive(trial):
                self.study.tell(trial.number, state=TrialState.FAIL)
                shutil.rmtree(self.trial_folder(trial.number), ignore_errors=True)
                retries = trial.user_attrs.get(RETRY, 0)
                params = {**trial.user_attrs.get(FIXED, {}), **trial.params}
                if params and retries < _MAX_RETRIES:
                    default = {DEFAULT: True} if trial.user_attrs.get(DEFAULT) else {}
                    self._enqueue(params, {RETRY: retries + 1, **default})

    def _is_alive(self, trial: FrozenTrial) -> bool:
        path = self.folder / "workers" / str(trial.user_attrs.get(WORKER))
        if not path.is_file():
            return False
        try:
            with locked(path, shared=True, blocking=False):
                pass
        except LockHeld:
            return True
        path.unlink(missing_ok=True)
        return False

    def _enqueue(self, params: Params, attributes: Params) -> None:
        self.study.enqueue_trial(params, user_attrs={FIXED: params, **attributes})

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with locked(self._lock_path):
            yield
