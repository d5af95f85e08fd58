"""Are the offline tables whole? A torn file is noticed before anything is computed from it.

``funnel features`` lists the files of its tables with sizes and hashes. A file of that list that is
gone, cut or changed stops whoever reads the tables, with the command that makes them anew. A file
that the stream appended is set aside: the tables are right without it, but less recent.
"""

from __future__ import annotations

from pathlib import Path

from feature_repo.files import read_json, write_json
from feature_repo.hashing import file_hash
from feature_repo.parquet_files import DamagedTable, set_torn_aside, why_unreadable
from feature_repo.workspace import Workspace

_LISTING = "files.json"
_STREAMED = "stream-"

FEATURES_ANEW = "run 'funnel features', which makes the tables anew, then 'funnel materialize'"
"""What to do when a file of the offline tables is damaged."""


def list_files(tables: Path) -> None:
    """Write the list of the files of finished tables, with their sizes and hashes."""
    files = {
        path.relative_to(tables).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": file_hash(path),
        }
        for path in _table_files(tables)
    }
    write_json(tables / _LISTING, files)


def forget_files(tables: Path) -> None:
    """Remove the list before files are rewritten; without it, only their indices are checked."""
    (tables / _LISTING).unlink(missing_ok=True)


def is_listed(tables: Path) -> bool:
    """Return whether the files of the tables are listed."""
    return (tables / _LISTING).is_file()


def damage_of(tables: Path, *, hashes: bool = False) -> str | None:
    """Return which file of finished tables is damaged, and how; None: none is.

    Args:
        tables: the folder of the tables.
        hashes: read all files and compare their hashes; otherwise sizes and indices.

    """
    listed = read_json(tables / _LISTING) if is_listed(tables) else {}
    for name, expected in listed.items():
        path = tables / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{path} has {path.stat().st_size} bytes instead of {expected['bytes']}"
        if hashes and file_hash(path) != expected["sha256"]:
            return f"{path} is not what was written (its hash differs)"
    for path in _table_files(tables):
        if reason := why_unreadable(path, footer_only=True):
            return f"{path} cannot be read ({reason})"
    return None


def require_whole_tables(workspace: Workspace) -> None:
    """Set torn files of the stream aside, and refuse tables with a damaged file.

    Raises:
        DamagedTable: a file of the tables is damaged.

    """
    if not workspace.features.is_dir():
        return
    tables = workspace.features.resolve()
    set_torn_files_aside(tables)
    if damage := damage_of(tables):
        raise DamagedTable(f"{damage}: {FEATURES_ANEW}")


def set_torn_files_aside(tables: Path) -> list[Path]:
    """Set the torn files that the stream appended to tables aside; return their new paths."""
    return set_torn_aside(sorted(tables.glob(f"*/{_STREAMED}*.parquet")))


def _table_files(tables: Path) -> list[Path]:
    """Return the files that the job wrote, without those that the stream appended later."""
    return [
        path
        for path in sorted(tables.rglob("[!.]*.parquet"))
        if not path.name.startswith(_STREAMED) and path.is_file()
    ]
