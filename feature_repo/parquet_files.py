"""Parquet files that are torn, as a power cut or a full disk leaves them: found, set aside, named.

A Parquet file ends with its index, so one that was cut short, or has no content, cannot be read at
all. It is renamed, not removed: nothing reads it any more, and a person can still look at it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.errors import FunnelError
from feature_repo.files import sync_folder

DAMAGED = ".damaged"
"""The suffix of a file that was set aside; its name begins with a dot."""

_log = logging.getLogger(__name__)


class DamagedTable(FunnelError):
    """A file of a table cannot be read; the message names it and the command that makes it anew."""


def why_unreadable(path: Path, *, footer_only: bool = False) -> str | None:
    """Return why the content of a file cannot be read; None: it can, or there is no such file.

    Args:
        path: the file.
        footer_only: look at the index at the file's end, by which a file that was cut is found.

    Raises:
        OSError: the disk does not give the file's content; that says nothing of the content.

    """
    try:
        with pq.ParquetFile(path) as file:
            if not footer_only:
                file.read()
    except FileNotFoundError:
        return None
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


def set_aside(path: Path, reason: str) -> Path:
    """Rename a file that cannot be read, say so, and return its new path."""
    aside = path.with_name(f".{path.name}{DAMAGED}")
    try:
        os.replace(path, aside)
    except FileNotFoundError:  # another process has set it aside
        return aside
    sync_folder(path.parent)
    _log.warning("%s cannot be read (%s): it is set aside as %s", path, reason, aside.name)
    return aside


def set_torn_aside(paths: Sequence[Path]) -> list[Path]:
    """Set those of some files aside whose index cannot be read, and return their new paths."""
    reasons = [(path, why_unreadable(path, footer_only=True)) for path in paths]
    return [set_aside(path, reason) for path, reason in reasons if reason]


def files_set_aside(folder: Path) -> list[Path]:
    """Return the files of a folder that were set aside."""
    return sorted(folder.glob(f".*{DAMAGED}"))


def original_name(aside: Path) -> str:
    """Return the name that a file had before it was set aside."""
    return aside.name.removeprefix(".").removesuffix(DAMAGED)


def read_whole(path: Path, schema: pa.Schema) -> pa.Table | None:
    """Return the rows of a file; None: they cannot be read, and it was set aside.

    Raises:
        FileNotFoundError: there is no such file.

    """
    try:
        return pq.read_table(path, schema=schema, partitioning=None)
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError):
        reason = why_unreadable(path)
        if reason is None:  # whole, but of other columns: not a matter of the disk
            raise
        set_aside(path, reason)
        return None
