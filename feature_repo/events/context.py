"""The context of an event or a request: declared fields such as the page or the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from feature_repo.cell_values import BOUND, MAX_NUMBER, stands_for_nothing

if TYPE_CHECKING:
    from feature_repo.dataset import ContextKind

ContextValue = str | float
"""Text, or a number."""

MAX_TEXT = 1_000
"""Characters of a text."""


class BadContext(ValueError):
    """A context has a field that the data set does not declare, or a value of another kind."""


def checked_context(
    given: Mapping[str, Any], fields: Mapping[str, ContextKind]
) -> dict[str, ContextValue]:
    """Return the values of a context, text without outer blanks; a missing one is left out.

    Args:
        given: the fields that a client sent.
        fields: those that the data set declares.

    Raises:
        BadContext: a field is unknown, or its value of another kind.

    """
    values: dict[str, ContextValue] = {}
    for name, value in given.items():
        if name not in fields:
            known = f"only {sorted(fields)}" if fields else "the data set declares none"
            raise BadContext(f"context.{name}: there is no such field, {known}")
        if value is None:
            continue
        if fields[name] == "numeric":
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise BadContext(f"context.{name}: {value!r:.100} is not a number")
            if not abs(value) <= MAX_NUMBER:  # also NaN
                raise BadContext(f"context.{name}: the number is {BOUND}")
            values[name] = float(value)
            continue
        if not isinstance(value, str):
            raise BadContext(f"context.{name}: {value!r:.100} is not text")
        if len(value) > MAX_TEXT:
            raise BadContext(f"context.{name}: the text is longer than {MAX_TEXT} characters")
        if not stands_for_nothing(value):
            values[name] = value.strip()
    return values


def usable_context(given: Any, fields: Mapping[str, ContextKind]) -> dict[str, ContextValue]:
    """Return what can be used of a context that somebody else than the API may have written."""
    values: dict[str, ContextValue] = {}
    for name, value in given.items() if isinstance(given, dict) else ():
        try:
            values |= checked_context({name: value}, fields)
        except BadContext:
            continue
    return values
