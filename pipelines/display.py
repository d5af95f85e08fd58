"""What a person sees while a stage runs: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from feature_repo.progress import Progress as Report

console = Console(stderr=True)
"""Progress and tables go to standard error: standard output is for results that programs read."""

if not console.is_terminal and "COLUMNS" not in os.environ:
    console.width = 110  # a file has room for wide tables

_LINE_EVERY_S = 60.0


class Stage:
    """One stage of a command on the screen; calling it reports progress."""

    def __init__(self, name: str, report: Report) -> None:
        """Take the stage's name and where its progress goes."""
        self._report = report
        self._start = time.monotonic()
        self.name = name
        self.summary = ""
        """What came out, in a few words; it is printed beside the time."""

    def __call__(self, description: str, done: int, total: int) -> None:
        """Report a step; ``total`` 0: it is unknown how many there are."""
        self._report(description, done, total)

    def line(self) -> str:
        """Return the line that remains on the screen: name, seconds, summary."""
        seconds = time.monotonic() - self._start
        return f"[green]{self.name:<28}[/] {seconds:6.1f} s  {escape(self.summary)}".rstrip()


@contextmanager
def stage(name: str) -> Iterator[Stage]:
    """Show the progress of a stage, and one line with its time when it ends."""
    if console.is_terminal:
        with _bar() as bar:
            task = bar.add_task(name, total=None)

            def show(description: str, done: int, total: int) -> None:
                text = f"{name}: {description}"
                bar.update(task, description=text, completed=done, total=total or None)

            shown = Stage(name, show)
            yield shown
    else:
        shown = Stage(name, _lines(name))
        yield shown
    console.print(shown.line(), highlight=False)


def _lines(name: str) -> Report:
    """Return a progress report for files: a line every minute."""
    last = time.monotonic()

    def report(description: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > _LINE_EVERY_S:
            last = time.monotonic()
            steps = f" ({done} of {total})" if total else f" ({done})" if done else ""
            console.print(f"{name}: {description}{steps}", highlight=False)

    return report


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


def sentence(text: str) -> None:
    """Print a sentence on a line of its own, however long it is."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def warning(text: str) -> None:
    """Print a sentence that a person must not miss."""
    console.print(f"[yellow]WARNING[/]: {escape(text)}", soft_wrap=True, highlight=False)


def result(line: str) -> None:
    """Print a line of the command's result to standard output."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
