"""Feast's own type checks, which an entry point may switch off to start faster."""

from __future__ import annotations

from typing import Any

import typeguard


def disable_feast_type_checks() -> None:
    """Make ``typeguard.typechecked`` do nothing in this process; call it before Feast is imported.

    Feast decorates its classes with it. The decorator parses and rewrites their sources at every
    start, which takes half of ``import feast``. Our calls are checked by mypy and tests instead.
    """
    typeguard.typechecked = _unchecked


def _unchecked(target: Any = None, **_: Any) -> Any:
    """Return what is decorated as it is."""
    return _unchecked if target is None else target
