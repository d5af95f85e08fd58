"""Runs a search: one process, or several that share the study."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from optuna import Trial, TrialPruned
from optuna.trial import TrialState

from feature_repo.errors import FunnelError
from feature_repo.progress import Progress, no_progress
from feature_repo.sanity import CannotLearn
from feature_repo.workspace import Workspace
from pipelines.search.plan import Plan
from pipelines.search.results import SearchResult, write_result
from pipelines.search.study import DEFAULT, FAILED, SearchConfig, SharedStudy
from pipelines.training.tracking import track

_POLL_S = 0.5


class SearchStopped(FunnelError):
    """The search ended early; finished trials are kept."""


def run_search(
    workspace: Workspace, plan: Plan, config: SearchConfig, progress: Progress
) -> SearchResult:
    """Search until the study has as many trials as ``config`` says, and write the best settings.

    Trials that finished earlier count; one that was killed is marked as failed and tried again.

    Raises:
        MissingStage: there is nothing to search on yet.
        SearchStopped: a process was killed or failed, or the time ran out before any trial
            finished.

    """
    deadline = time.time() + 60 * config.minutes if config.minutes is not None else float("inf")
    name = f"{plan.name}-{plan.version(workspace)}"
    with closing(SharedStudy(workspace, plan, config, name)) as study:
        if study.finished() < config.trials:
            job = _Job(workspace, plan, plan.data(workspace, progress), config, name, deadline)
            if config.jobs == 1:
                _run_trials(job, progress)
            else:
                _run_in_processes(job, study, progress)
        if not any(trial.state == TrialState.COMPLETE for trial in study.study.trials):
            raise SearchStopped(
                f"no trial of {study.name} has finished: give more --minutes or --trials"
            )
        return write_result(workspace, plan, study)


@dataclass(frozen=True)
class _Job:
    """What each process works on.

    Attributes:
        workspace: the working folder.
        plan: what is searched.
        data: what every trial learns from.
        config: how long to search.
        name: of the study.
        deadline: epoch seconds after which no trial starts.

    """

    workspace: Workspace
    plan: Plan
    data: Any
    config: SearchConfig
    name: str
    deadline: float


def _run_in_processes(job: _Job, study: SharedStudy, progress: Progress) -> None:
    # Spawned: the threads of torch and Arrow do not survive a fork.
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_run_trials, args=(job,)) for _ in range(job.config.jobs)]
    for worker in workers:
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers):
            progress("trials", study.finished(), job.config.trials)
            time.sleep(_POLL_S)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    failed = [worker.exitcode for worker in workers if worker.exitcode]
    if failed and study.finished() < job.config.trials:  # else the others have done the work
        raise SearchStopped(
            f"{len(failed)} of {len(workers)} processes failed ({failed}); "
            "run the command again to continue"
        )


def _run_trials(job: _Job, progress: Progress = no_progress) -> None:
    """Run trials until there are enough, in one process."""
    if job.config.jobs > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // job.config.jobs))
    with closing(SharedStudy(job.workspace, job.plan, job.config, job.name)) as study:
        while time.time() < job.deadline and (trial := study.next()):
            progress("trials", study.finished(), job.config.trials)
            _run_trial(job, study, trial)


def _run_trial(job: _Job, study: SharedStudy, trial: Trial) -> None:
    plan, folder = job.plan, study.trial_folder(trial.number)
    tags = {"study": study.name, "trial": str(trial.number)}
    with track(job.workspace, f"tune-{plan.name}", tags) as run:
        params = plan.draw(trial)
        run.parameters(params)

        def report(step: int, figure: float) -> None:
            run.metrics({plan.figure: figure}, step)
            trial.report(figure, step)
            # The pruner sees defaults too, since others are compared with them, but they are never
            # pruned.
            if trial.should_prune() and not trial.user_attrs.get(DEFAULT):
                raise TrialPruned

        try:
            value = plan.value(job.data, params, folder, report)
        except TrialPruned:
            study.study.tell(trial, state=TrialState.PRUNED)
        except CannotLearn as error:  # settings that learn nothing get the lowest figure
            trial.set_user_attr(FAILED, str(error))
            study.study.tell(trial, 0.0)
        except Exception:
            study.study.tell(trial, state=TrialState.FAIL)
            raise
        else:
            run.metrics({f"best_{plan.figure}": value})
            study.study.tell(trial, value)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
