"""``funnel demo``: every stage in order, three users' recommendations, then the API."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from rich.table import Table

from feature_repo import columns as c
from feature_repo.workspace import Workspace
from pipelines import display, stages
from pipelines.ingest import read_events
from pipelines.release import current_release
from serving.app import create_app
from serving.engine import Engine
from serving.release import load_release
from serving.schemas import RecommendationRequest

_SHOWN = 5
_USERS = 3


def run_demo(data: str, data_dir: Path | None, home: Path | None, serve: bool, host: str, port: int) -> None:
    """Run every stage on a data set, show what came out and, unless told otherwise, serve it."""
    workspace = stages.run_ingest(data, data_dir, home, shift_to_now=True)
    stages.run_features(workspace)
    stages.run_materialize(workspace)
    stages.run_train(workspace)
    stages.run_release(workspace, None)
    figures = stages.run_evaluate(workspace, None)
    users = show_recommendations(workspace)
    display.result(json.dumps(figures))
    if serve:
        run_server(workspace, host, port, users[0])
    else:
        display.console.print("Serve it with [bold]funnel serve[/].")


def show_recommendations(workspace: Workspace) -> list[str]:
    """Print the recommendations of the three most recently active users beside their history; return the users."""
    engine = Engine(load_release(current_release(workspace)), workspace, log_impressions=False)
    events = read_events(workspace, [c.USER, c.POSITIVE])
    active = events.loc[events[c.POSITIVE], c.USER].iloc[::-1].drop_duplicates()
    users = [str(user) for user in active.iloc[:_USERS]]
    for user in users:
        features = engine.user_features(user)
        history = list(reversed(features.columns[c.HISTORY_ITEMS][0] or []))[:_SHOWN]
        answer = engine.recommend(RecommendationRequest(user_id=user, k=_SHOWN))
        table = Table(title=f"user {user}", title_justify="left")
        for column in ("recent history", "recommended", "score", "sources"):
            table.add_column(column)
        for row in range(_SHOWN):
            past = _name(engine, history[row]) if row < len(history) else ""
            if row < len(answer.items):
                item = answer.items[row]
                table.add_row(past, _name(engine, item.item_id), f"{item.score:.3f}", ", ".join(item.sources))
            else:
                table.add_row(past, "", "", "")
        display.console.print(table)
    return users


def _name(engine: Engine, item_id: str) -> str:
    spec = engine.release.codec.spec
    title = spec.items.title if spec.items else None
    code = engine.release.codec.items.code(item_id)
    values: Sequence[Any] = engine.items.raw[title] if title and code else ()
    return f"{values[code]} ({item_id})" if values and values[code] else item_id


class _Server(uvicorn.Server):
    """Says how to call it once it really listens."""

    curl: str = ""

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started and self.curl:
            display.console.print("The API is up. Try:")
            display.console.print(self.curl, soft_wrap=True, highlight=False, markup=False)


def run_server(workspace: Workspace, host: str, port: int, user: str = "1") -> None:
    """Serve the current release until interrupted."""
    app = create_app(workspace, current_release(workspace))
    server = _Server(uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False))
    body = json.dumps({"user_id": user, "k": _SHOWN})
    server.curl = f"curl -s http://{host}:{port}/v1/recommendations -H 'content-type: application/json' -d '{body}'"
    server.run()
