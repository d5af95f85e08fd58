"""``funnel keys``: API keys, their scopes and limits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.commands.options import Home, workspace_of
from serving.http.keys import GRACE, Created, Key, Scope, create, read_keys, revoke, rotate

keys = typer.Typer(no_args_is_help=True, help="Create, list, rotate and revoke API keys.")

Id = Annotated[str, typer.Argument(help="The key's id, as 'funnel keys list' shows it")]


def _file(home: Path | None) -> Path:
    return workspace_of(home).root / "keys.json"


@keys.command("create")
def create_key(
    *,
    name: Annotated[str, typer.Option(help="Name of the caller")],
    scope: Annotated[list[Scope], typer.Option(help="What the caller may do; repeatable")],
    days: Annotated[
        float | None, typer.Option(help="Days until it expires (default: never)", min=0.001)
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Maximum requests a second, in each worker process (default: no limit)",
            min=0.001,
            max=1e6,
        ),
    ] = None,
    home: Home = None,
) -> None:
    """Create a key and print it, once, to standard output."""
    if not 1 <= len(name) <= 100:
        raise typer.BadParameter("a name has 1 to 100 characters", param_hint="--name")
    expires_at = datetime.now(UTC) + timedelta(days=days) if days else None
    _show(
        create(_file(home), name, scope, expires_at=expires_at, rate_limit=rate),
        "Store it now: it is not shown again.",
    )


@keys.command("list")
def list_keys(home: Home = None) -> None:
    """List the keys, without their secrets."""
    path = _file(home)
    table = Table("id", "name", "scopes", "created", "expires", "requests/s")
    for key in read_keys(path) if path.exists() else []:
        rate = f"{key.rate_limit:g}" if key.rate_limit else ""
        table.add_row(
            key.id,
            escape(key.name),
            ", ".join(key.scopes),
            _utc(key.created_at),
            _expiry(key),
            rate,
        )
    Console().print(table)


@keys.command("rotate")
def rotate_key(
    key_id: Id,
    grace_hours: Annotated[
        float, typer.Option(help="Hours for which the old key stays valid", min=0)
    ] = GRACE / timedelta(hours=1),
    home: Home = None,
) -> None:
    """Replace a key by a new one with the same scopes and lifetime."""
    created = rotate(_file(home), key_id, timedelta(hours=grace_hours))
    _show(
        created,
        f"Store it now: it is not shown again. The old key expires within {grace_hours:g} hours.",
    )


@keys.command("revoke")
def revoke_key(key_id: Id, home: Home = None) -> None:
    """Revoke a key; a running server refuses it within about a second."""
    _say(f"Key {key_id} of '{revoke(_file(home), key_id).name}' is revoked.")


def _show(created: Created, note: str) -> None:
    typer.echo(created.text)
    expiry = _expiry(created.key)
    _say(
        f"Key {created.key.id} for {', '.join(created.key.scopes)}"
        f"{f', until {expiry}' if expiry else ''}. {note}"
    )


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _expiry(key: Key) -> str:
    if key.expires_at is None:
        return ""
    return _utc(key.expires_at) + (" (expired)" if key.expired(datetime.now(UTC)) else "")


def _utc(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M}Z"
