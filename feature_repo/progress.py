"""How long work reports its progress, without knowing who shows it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A callback for the progress of one stage."""

    def __call__(self, description: str, done: int, total: int, /) -> None:
        """Report progress.

        Args:
            description: what is being done at present.
            done: completed steps.
            total: all steps; 0 if their number is unknown.

        """


def no_progress(description: str, done: int, total: int, /) -> None:
    """Report nothing."""
