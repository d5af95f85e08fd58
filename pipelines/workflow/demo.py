"""``funnel demo``: every stage in order, three users' recommendations, then the API."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from feature_repo import columns as c
from feature_repo.workspace import Workspace, default_root
from pipelines import display
from pipelines.ingest.ingested import read_events
from pipelines.training.learnable import check_learnable
from pipelines.training.release_pointer import current_release
from pipelines.workflow import stages
from pipelines.workflow.ingest_report import show_told
from pipelines.workflow.train_options import TrainOptions
from serving.api.schemas import RecommendationRequest
from serving.engine import Engine
from serving.process.server import serve
from serving.releases.release import load_release

_ITEMS_SHOWN = 5
_USERS_SHOWN = 3


@dataclass(frozen=True)
class DemoSize:
    """How much the demo trains and evaluates; the stages are the same.

    Attributes:
        training: options of ``funnel train``.
        evaluated: events of the test slice to replay; None: all.

    """

    training: TrainOptions
    evaluated: int | None


QUICK = DemoSize(TrainOptions(kinds=("popularity", "lambdarank"), requests=2_000), 1_000)
FULL = DemoSize(TrainOptions(), None)


def run_demo(
    data: str, data_dir: Path | None, home: Path | None, size: DemoSize = QUICK
) -> Workspace:
    """Run every stage on a data set and return its working folder."""
    start = time.monotonic()
    workspace, report = stages.run_ingest(data, data_dir, home, shift_to_now=True)
    show_told(report)
    check_learnable(workspace, evaluated=True)
    stages.run_features(workspace)
    stages.run_materialize(workspace)
    stages.run_train(workspace, size.training)
    stages.run_release(workspace, None)
    stages.run_evaluate(workspace, size.evaluated, baselines=False)
    display.console.print(f"{'All stages':<28} {time.monotonic() - start:6.1f} s", highlight=False)
    return workspace


def show_recommendations(workspace: Workspace) -> list[str]:
    """Print recommendations of the three most recently active users and return the users' ids."""
    engine = Engine(load_release(current_release(workspace)), workspace, log_impressions=False)
    events = read_events(workspace, [c.USER, c.POSITIVE])
    active = events.loc[events[c.POSITIVE], c.USER].iloc[::-1].drop_duplicates()
    users = [str(user) for user in active.iloc[:_USERS_SHOWN]]
    for user in users:
        display.console.print(_recommendations(engine, user))
    return users


def _recommendations(engine: Engine, user: str) -> Table:
    """Return a user's recommendations beside the most recent history."""
    features = engine.user_features(user)
    history = list(reversed(features.columns[c.HISTORY_ITEMS][0] or []))[:_ITEMS_SHOWN]
    items = engine.recommend(RecommendationRequest(user_id=user, k=_ITEMS_SHOWN))["items"]
    table = Table(title=f"user {user}", title_justify="left")
    for column in ("recent history", "recommended", "score", "sources"):
        table.add_column(column)
    for row in range(_ITEMS_SHOWN):
        past = _title(engine, history[row]) if row < len(history) else ""
        if row < len(items):
            item = items[row]
            title = _title(engine, item["item_id"])
            table.add_row(past, title, f"{item['score']:.3f}", ", ".join(item["sources"]))
        else:
            table.add_row(past, "", "", "")
    return table


def _title(engine: Engine, item_id: str) -> str:
    """Return an item's title, where there is one, and its id."""
    spec = engine.release.codec.spec
    title = spec.items.title if spec.items else None
    code = engine.release.codec.items.code(item_id)
    values: Sequence[Any] = engine.items.raw[title] if title and code else ()
    return f"{values[code]} ({item_id})" if values and values[code] else item_id


def become_server(workspace: Workspace, host: str, port: int, user: str) -> None:
    """Replace this process with ``funnel serve``: training left threads and memory in this one."""
    command = [sys.executable, "-c", "from pipelines.commands.cli import main; main()", "serve"]
    options = {"home": str(workspace.root), "host": host, "port": str(port), "user": user}
    for name, value in options.items():
        command += [f"--{name}", value]
    os.execv(sys.executable, [*command, "--next-steps"])


def run_server(
    workspace: Workspace, address: tuple[str, int], workers: int, user: str, *, next_steps: bool
) -> None:
    """Serve the current release until interrupted; ``user`` is the one of the printed call."""

    def announce() -> None:
        host, port = address
        display.console.print("\nThe API is up. Try:", highlight=False)
        _print_code(_call(workspace, f"http://{host}:{port}", user))
        if next_steps:
            show_next_steps(workspace)

    serve(workspace, current_release(workspace), address, workers=workers, started=announce)


def _call(workspace: Workspace, url: str, user: str) -> str:
    """Return a curl command that asks for recommendations."""
    with_keys = (workspace.root / "keys.json").exists()
    key = ' -H "Authorization: Bearer $FUNNEL_KEY"' if with_keys else ""
    body = json.dumps({"user_id": user, "k": _ITEMS_SHOWN})
    content = "-H 'content-type: application/json'"
    return f"curl -s {url}/v1/recommendations{key} {content} -d '{body}'"


def show_next_steps(workspace: Workspace, *, serving: bool = True) -> None:
    """Print the commands that a new user will want next."""
    funnel = _command()
    in_use = default_root().resolve() == workspace.root.resolve()
    home = "" if in_use else f" --home {workspace.root}"
    steps = {
        f"{funnel} stream{home}": "keep features fresh from POST /v1/events",
        f"{funnel} evaluate{home}": "every metric, with baselines",
        "make notebooks": "look at data, towers and rankers",
        f"{funnel} demo --data my-shop/dataset.toml": "bring your own data (see README)",
        "make demo DEMO=full": "a larger world, every kind of ranker",
    }
    if not serving:
        steps = {f"{funnel} serve{home}": "answer requests over HTTP"} | steps
    width = max(map(len, steps))
    display.console.print("\nNext, in another terminal:" if serving else "\nNext:")
    for command, purpose in steps.items():
        _print_code(f"  {command:<{width}}  # {purpose}")


def _command() -> str:
    """Return how this installation's ``funnel`` is called from the current folder."""
    if shutil.which("funnel"):
        return "funnel"
    script = Path(sys.executable).with_name("funnel")
    return os.path.relpath(script) if script.is_relative_to(Path.cwd()) else str(script)


def _print_code(text: str) -> None:
    display.console.print(text, soft_wrap=True, highlight=False, markup=False)
