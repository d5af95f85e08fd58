"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from feature_repo.workspace import Workspace, default_root
from ranking.config import KINDS

Home = Annotated[
    Path | None, typer.Option(help="Working folder (default: FUNNEL_HOME, else work/current)")
]
NewHome = Annotated[
    Path | None,
    typer.Option(
        "--home",
        help="Working folder (default: FUNNEL_HOME, else work/<data set>, which becomes "
        "work/current)",
    ),
]
Data = Annotated[
    str,
    typer.Option(
        help="synthetic, synthetic-full, movielens-1m, movielens-latest-small, deskdrop, or the "
        "path of a dataset.toml"
    ),
]
Kinds = Annotated[
    list[str] | None,
    typer.Option("--kind", help=f"Kind of ranker, of {', '.join(KINDS)}; repeatable"),
]
DataDir = Annotated[Path | None, typer.Option(help="Folder with the data set's files")]
Limit = Annotated[
    int | None,
    typer.Option(help="Maximum events, evenly spaced over the test slice (default: all)", min=1),
]
Host = Annotated[str, typer.Option(help="Address to listen on")]
Port = Annotated[int, typer.Option(help="Port to listen on")]


def use_all_cores() -> None:
    """Let a command that runs alone have the machine."""
    os.environ.setdefault("FUNNEL_THREADS", str(os.cpu_count() or 1))


def use_one_core() -> None:
    """Keep libraries from starting threads in a server, which answers requests in parallel."""
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")


def workspace_of(home: Path | None) -> Workspace:
    """Return the working folder: ``--home``, else ``FUNNEL_HOME``, else ``work/current``."""
    return Workspace((home or default_root()).resolve())


def known_kinds(kinds: list[str] | None) -> tuple[str, ...]:
    """Return the kinds of ranker that were given, each once; none: the command's default.

    Raises:
        typer.BadParameter: a kind is unknown.

    """
    if unknown := set(kinds or ()) - set(KINDS):
        choices = ", ".join(KINDS)
        raise typer.BadParameter(
            f"{', '.join(sorted(unknown))}: choose from {choices}", param_hint="--kind"
        )
    return tuple(dict.fromkeys(kinds or ()))
