"""A search that needs no model.

A parabola whose top is known. It can wait in one trial, to be killed there.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from feature_repo.workspace import Workspace
from pipelines.ingest.ingested import data_version
from pipelines.search.run import run_search
from pipelines.search.study import SearchConfig

TOP, STEPS = 0.7, 4


@dataclass(frozen=True)
class Parabola:
    """Worth ``1 - (x - 0.7)^2``, of which each of four steps sees a quarter more.

    The default is x = 0.
    """

    wait_at: int | None = None  # a trial says so in a file ``waiting``, and sleeps
    name = "parabola"
    figure = "height"
    steps = STEPS
    first_rung = 1

    def version(self, workspace):
        return data_version(workspace)

    def defaults(self):
        return [{"x": 0.0, "idle": 0.5}]

    def draw(self, trial):
        return {
            "x": trial.suggest_float("x", 0.0, 1.0),
            "idle": trial.suggest_float("idle", 0.0, 1.0),
        }

    def data(self, workspace, progress):
        progress("nothing to read", 1, 1)
        return workspace.root

    def value(self, data, params, folder, report):
        folder.mkdir()
        if folder.name == f"trial-{self.wait_at}":
            (Path(data) / "waiting").touch()
            time.sleep(600)
        top = 1.0 - (params["x"] - TOP) ** 2
        for step in range(1, STEPS + 1):
            report(step, top * step / STEPS)
        return top


def search(root, trials, jobs=1, plan=None, **settings):
    """Run the search in the workspace below ``root``."""
    workspace = Workspace(Path(root))
    return run_search(
        workspace, plan or Parabola(), SearchConfig(trials, jobs, **settings), lambda *_: None
    )
