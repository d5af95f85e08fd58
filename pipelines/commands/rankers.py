"""Commands that inspect and compress rankers."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from feature_repo.stage_locks import Written, stage_lock
from pipelines.commands.options import Home, Kinds, known_kinds, use_all_cores, workspace_of

rankers = typer.Typer()


@rankers.command()
def importance(
    home: Home = None,
    requests: Annotated[int, typer.Option(help="Maximum validation requests", min=1)] = 300,
    repeats: Annotated[int, typer.Option(help="Permutations of each feature", min=2)] = 5,
    k: Annotated[int, typer.Option(help="Length of the ranked lists that count", min=1)] = 10,
) -> None:
    """Measure permutation importance of the served ranker; the last line is JSON."""
    from pipelines import display
    from pipelines.training.importance import importance as measure
    from pipelines.training.importance import show

    use_all_cores()
    with display.stage("Importance") as progress:
        figures = measure(
            workspace_of(home), requests=requests, repeats=repeats, k=k, progress=progress
        )
    show(figures, k)
    display.result(json.dumps(figures))


@rankers.command("learning-curve")
def learning_curve(
    home: Home = None,
    kind: Kinds = None,
) -> None:
    """Train rankers on an eighth, a quarter, half and all of the requests; the last line is JSON.

    Without --kind, the best kind is trained. A stopped run continues with the missing points.
    """
    from pipelines import display
    from pipelines.training.learning_curve import learning_curve as train
    from pipelines.training.learning_curve import show

    kinds = known_kinds(kind)
    use_all_cores()
    workspace = workspace_of(home)
    with stage_lock(workspace, Written.MODELS), display.stage("Learning curve") as progress:
        figures = train(workspace, kinds, None, progress)
    show(figures)
    display.result(json.dumps(figures))


@rankers.command()
def compress(home: Home = None) -> None:
    """Make smaller rankers from the trained ones; the last line is JSON.

    'funnel release --ranker NAME' releases one of them. Latency is processor time of one core, as
    in serving.
    """
    from pipelines import display
    from pipelines.training.compress import compress as make
    from pipelines.training.compress import show

    workspace = workspace_of(home)
    with stage_lock(workspace, Written.MODELS), display.stage("Compress") as progress:
        figures = make(workspace, None, progress)
    show(figures)
    display.result(json.dumps(figures))
