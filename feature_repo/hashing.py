"""Hashes that name a version of data: of JSON-like values and of files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def fingerprint(*parts: Any) -> str:
    """Return a short stable hash of JSON-like values: the version of what was made from them."""
    text = json.dumps(parts, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    # The order of a set differs from process to process.
    return sorted(value, key=str) if isinstance(value, set | frozenset) else str(value)
