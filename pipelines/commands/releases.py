"""``funnel release``: pack trained models, and choose the release that is served."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from feature_repo.workspace import Workspace
from pipelines.commands.options import Home, workspace_of

releases = typer.Typer(invoke_without_command=True)

Rules = Annotated[
    Path | None, typer.Option("--filters", help="Filter rules (default: those that ship)")
]
Ranker = Annotated[
    str | None,
    typer.Option("--ranker", help="Folder in models/ranking (default: the best in training)"),
]
Id = Annotated[str, typer.Argument(help="Id of the release, or its first characters")]


@releases.callback()
def release(
    context: typer.Context, home: Home = None, filters: Rules = None, ranker: Ranker = None
) -> None:
    """Pack the trained models into a release and make it the current one."""
    context.obj = home
    if context.invoked_subcommand is None:
        from pipelines.workflow.stages import run_release

        run_release(_workspace(context, None), filters, ranker)
    elif filters is not None or ranker is not None:
        hint = "--ranker" if filters is None else "--filters"
        raise typer.BadParameter("rules and rankers are packed into a new release", param_hint=hint)


@releases.command("list")
def list_releases(context: typer.Context, home: Home = None) -> None:
    """List all releases, oldest first; the last line is JSON."""
    from pipelines import display
    from pipelines.training.release_pointer import releases as known

    found = known(_workspace(context, home))
    rows = [
        [
            f"{one.id} *" if one.current else one.id,
            one.created_at,
            one.data_version,
            one.ndcg or "",
            one.problem or "ok",
        ]
        for one in found
    ]
    display.table("Releases (*: current)", ["", "created", "data", "NDCG@10", "files"], rows)
    display.result(json.dumps([asdict(one) for one in found]))


@releases.command("promote")
def promote_release(context: typer.Context, release_id: Id, home: Home = None) -> None:
    """Check a release and make it the current one; a bad one changes nothing."""
    from pipelines.training.release_pointer import promote

    _print_current(promote(_workspace(context, home), release_id))


@releases.command("rollback")
def rollback_release(context: typer.Context, home: Home = None) -> None:
    """Make the previous release the current one; repeat to go further back."""
    from pipelines.training.release_pointer import rollback

    _print_current(rollback(_workspace(context, home)))


@releases.command("verify")
def verify_release(
    context: typer.Context,
    release_id: Annotated[
        str | None, typer.Argument(help="Id of the release (default: the current one)")
    ] = None,
    home: Home = None,
) -> None:
    """Run the checks that a release must pass before it is served."""
    from pipelines.training.release_pointer import current_release, find_release
    from serving.releases.verify import check_release, registered_features

    workspace = _workspace(context, home)
    folder = find_release(workspace, release_id) if release_id else current_release(workspace)
    check_release(folder, registered_features(workspace))
    _say(f"release {folder.name} can be served")


def _workspace(context: typer.Context, home: Path | None) -> Workspace:
    return workspace_of(home or context.obj)


def _print_current(folder: Path) -> None:
    _say(f"release {folder.name} is the current one")


def _say(line: str) -> None:
    from pipelines import display

    display.console.print(line)
