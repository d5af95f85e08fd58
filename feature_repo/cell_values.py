"""What a value of a file or a request may be: words that stand for no value, and the bound."""

from __future__ import annotations

MAX_NUMBER = 1e15
"""Numbers beyond plus or minus this are refused: sums of them in millionths stay exact."""

BOUND = f"beyond ±{MAX_NUMBER:.0e}".replace("e+", "e")
"""Names the bound in a reason."""

NULL_WORDS = frozenset(
    {"undefined", "null", "none", "nan", "nat", "\\n", "<na>", "n/a", "#n/a", "(null)"}
    | {"[object object]"}
)
"""Words that programs write where there is no value, in small letters."""


def stands_for_nothing(text: str) -> bool:
    """Return whether a text is blank or one of the words that mean that there is no value."""
    return not (stripped := text.strip()) or stripped.lower() in NULL_WORDS
