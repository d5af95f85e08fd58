"""``funnel demo``: every stage in order, three users' recommendations, then the API."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from feature_repo import columns as c
from feature_repo.workspace import Workspace
from pipelines import display
from pipelines.ingest.ingest import read_events
from pipelines.training.release import current_release
from pipelines.workflow import stages
from serving.api.schemas import RecommendationRequest
from serving.engine import Engine
from serving.process.supervisor import serve
from serving.releases.release import load_release

_SHOWN = 5
_USERS = 3


def run_demo(
    data: str, data_dir: Path | None, home: Path | None, serve: bool, host: str, port: int
) -> None:
    """Run every stage on a data set, show what came out and, unless told otherwise, serve it."""
    workspace = stages.run_ingest(data, data_dir, home, shift_to_now=True)
    stages.run_features(workspace)
    stages.run_materialize(workspace)
    stages.run_train(workspace)
    stages.run_release(workspace, None)
    figures = stages.run_evaluate(workspace, baselines=False)
    users = show_recommendations(workspace)
    display.result(json.dumps(figures.to_dict()))
    if serve:
        # A process of its own: this one holds what training and Spark needed, and its libraries are
        # set for them.
        options = [
            "--home",
            str(workspace.root),
            "--host",
            host,
            "--port",
            str(port),
            "--user",
            users[0],
        ]
        os.execv(
            sys.executable,
            [
                sys.executable,
                "-c",
                "from pipelines.commands.cli import main; main()",
                "serve",
                *options,
            ],
        )
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
            if row < len(answer["items"]):
                item = answer["items"][row]
                score, sources = f"{item['score']:.3f}", ", ".join(item["sources"])
                table.add_row(past, _name(engine, item["item_id"]), score, sources)
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


def run_server(workspace: Workspace, host: str, port: int, user: str, workers: int) -> None:
    """Serve the current release until interrupted."""
    key = (
        ' -H "Authorization: Bearer $FUNNEL_KEY"' if (workspace.root / "keys.json").exists() else ""
    )
    body = json.dumps({"user_id": user, "k": _SHOWN})
    call = f"curl -s http://{host}:{port}/v1/recommendations{key} -H 'content-type: application/json' -d '{body}'"

    def say() -> None:
        display.console.print("The API is up. Try:")
        display.console.print(call, soft_wrap=True, highlight=False, markup=False)

    serve(workspace, current_release(workspace), (host, port), workers, say)
