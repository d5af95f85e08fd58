"""What Funnel knows about users and items: the dataset spec, column names and Feast definitions."""

from typing import Any

import typeguard


def _unchecked(target: Any = None, **_: Any) -> Any:
    """Return what is decorated as it is."""
    return _unchecked if target is None else target


# Feast's classes are decorated so that every call of theirs checks its types, for which their
# sources are parsed and rewritten at every start: half of what `import feast` takes, seconds of
# every command. What we pass is tested.
typeguard.typechecked = _unchecked
