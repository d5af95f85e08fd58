"""``funnel tune``: heavy imports wait until they are needed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands.options import Home, use_all_cores, workspace_of

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines.search.plan import Plan
    from pipelines.search.results import SearchResult

tune = typer.Typer(
    no_args_is_help=True,
    help="Search for better settings on validation data; a stopped search continues.",
)

Trials = Annotated[
    int,
    typer.Option(help="Trials of the study in total, pruned ones included", min=1),
]
Jobs = Annotated[int, typer.Option(help="Parallel search processes", min=1)]
Minutes = Annotated[
    float | None,
    typer.Option(help="Minutes after which no new trial starts (default: no limit)", min=0),
]


@tune.command("towers")
def towers(home: Home = None, trials: Trials = 30, jobs: Jobs = 1, minutes: Minutes = None) -> None:
    """Search settings of the two towers, by recall@100 over all items on validation."""
    from pipelines.search.tower_search import TowerSearch

    _search(home, TowerSearch(), trials=trials, jobs=jobs, minutes=minutes)


@tune.command("rankers")
def rankers(
    home: Home = None, trials: Trials = 30, jobs: Jobs = 1, minutes: Minutes = None
) -> None:
    """Search a ranker's kind and settings, by NDCG@10 on validation."""
    from pipelines.search.ranker_search import RankerSearch

    _search(home, RankerSearch(), trials=trials, jobs=jobs, minutes=minutes)


def _search(
    home: Path | None, plan: Plan, *, trials: int, jobs: int, minutes: float | None
) -> None:
    from pipelines import display
    from pipelines.search.run import run_search
    from pipelines.search.study import SearchConfig

    use_all_cores()
    with display.stage(f"Tune {plan.name}") as progress:
        found = run_search(workspace_of(home), plan, SearchConfig(trials, jobs, minutes), progress)
    _show(found)
    display.result(json.dumps(found.to_dict()))


def _show(found: SearchResult) -> None:
    from pipelines import display

    rows = []
    default = found.default_settings or {}
    for name, value in found.settings.items():
        rows.append(
            [name, _short(default.get(name, "")), _short(value), found.importance.get(name, "")]
        )
    before = "" if found.default_value is None else found.default_value
    ended = ", ".join(f"{count} {how}" for how, count in sorted(found.trials.items()))
    display.table(
        f"{found.study}: {ended}; best is trial {found.trial}",
        ["", "defaults", "best", "importance"],
        [*rows, [f"{found.figure} on validation", before, found.value, ""]],
    )


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
