"""What a person sees while a stage runs: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from retrieval.towers.training import Progress as Report

console = Console(stderr=True)
"""Progress and tables go to standard error: standard output is for results that programs read."""

if not console.is_terminal and "COLUMNS" not in os.environ:
    console.width = 110  # a file has room for wide tables

_LINE_EVERY_S = 15.0


@contextmanager
def stage(name: str) -> Iterator[Report]:
    """Show a stage's progress; the value is called with what is done, how many steps, of how many (0: unknown)."""
    start = time.monotonic()
    if console.is_terminal:
        with _bar() as bar:
            task = bar.add_task(name, total=None)

            def show(what: str, done: int, total: int) -> None:
                bar.update(task, description=f"{name}: {what}", completed=done, total=total or None)

            yield show
            bar.update(task, description=name, completed=1, total=1)
    else:
        console.print(f"{name} ...")
        said = [start]

        def tell(what: str, done: int, total: int) -> None:
            if time.monotonic() - said[0] > _LINE_EVERY_S:
                said[0] = time.monotonic()
                console.print(f"  {what} ({done} of {total})" if total else f"  {what} ({done})")

        yield tell
    console.print(f"[green]{name}[/]: {time.monotonic() - start:.1f} s")


def _bar() -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Print a table; floats with four digits."""
    shown = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        shown.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        shown.add_row(*(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row))
    console.print(shown)


def result(line: str) -> None:
    """Print a line of the command's result to standard output."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
