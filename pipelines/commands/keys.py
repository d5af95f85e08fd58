"""``funnel keys``: who may call the API."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from feature_repo.workspace import default_root
from pipelines.commands.options import Home
from serving.http.keys import GRACE, Created, Key, Scope, create, read_keys, revoke, rotate

keys = typer.Typer(no_args_is_help=True, help="API keys: make, list, replace and take back.")

Id = Annotated[str, typer.Argument(help="The key's id, as 'funnel keys list' shows it")]


def _file(home: Path | None) -> Path:
    return (home or default_root()).resolve() / "keys.json"


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="Who or what uses it")],
    scope: Annotated[list[Scope], typer.Option(help="What it may do; may be given more than once")],
    days: Annotated[
        float | None, typer.Option(help="Valid for so long (default: until revoked)", min=0.001)
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Requests a second and worker process (default: any)", min=0.001, max=1e6
        ),
    ] = None,
    home: Home = None,
) -> None:
    """Make a key. It is shown once, on standard output."""
    if not 1 <= len(name) <= 100:
        raise typer.BadParameter("a name has 1 to 100 characters", param_hint="--name")
    expires_at = datetime.now(UTC) + timedelta(days=days) if days else None
    _show(create(_file(home), name, scope, expires_at, rate), "Keep it now: it is not kept here.")


@keys.command("list")
def list_keys(home: Home = None) -> None:
    """Show the keys, without their secrets."""
    path = _file(home)
    table = Table("id", "name", "scopes", "created", "expires", "requests/s")
    for key in read_keys(path) if path.exists() else []:
        rate = f"{key.rate_limit:g}" if key.rate_limit else ""
        table.add_row(
            key.id, escape(key.name), ", ".join(key.scopes), _utc(key.created_at), _end(key), rate
        )
    Console().print(table)


@keys.command("rotate")
def rotate_key(
    key_id: Id,
    grace_hours: Annotated[
        float, typer.Option(help="So long the old key stays valid", min=0)
    ] = GRACE / timedelta(hours=1),
    home: Home = None,
) -> None:
    """Make a key that may do the same; the old one ends later. A lifetime begins anew."""
    created = rotate(_file(home), key_id, timedelta(hours=grace_hours))
    _show(
        created,
        f"Keep it now: it is not kept here. The old one ends in {grace_hours:g} hours at the latest.",
    )


@keys.command("revoke")
def revoke_key(key_id: Id, home: Home = None) -> None:
    """Take a key back; a running server refuses it within about a second."""
    _say(f"Key {key_id} of '{revoke(_file(home), key_id).name}' is gone.")


def _show(created: Created, note: str) -> None:
    typer.echo(created.text)
    end = _end(created.key)
    _say(
        f"Key {created.key.id} for {', '.join(created.key.scopes)}{f', until {end}' if end else ''}. {note}"
    )


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _end(key: Key) -> str:
    if key.expires_at is None:
        return ""
    return _utc(key.expires_at) + (" (over)" if key.expired(datetime.now(UTC)) else "")


def _utc(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}Z"
