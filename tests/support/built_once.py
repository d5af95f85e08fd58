"""Folders that are costly to build, kept below the checkout as long as the sources stay the same.

Test processes side by side share them: the first one builds, the others wait for it. A day's folder
is not used on the next day, since the small world ends at the day on which it was made.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ROOT / ".pytest_cache" / "built"
SOURCES = ("feature_repo", "pipelines", "ranking", "retrieval", "serving")


def built_once(name: str, build: Callable[[Path], None]) -> Path:
    """Return the folder that ``build`` filled, in this run or one before. Change nothing in it."""
    FOLDERS.mkdir(parents=True, exist_ok=True)
    folder = FOLDERS / f"{name}-{_version()}"
    with (FOLDERS / f".{name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            for old in (*FOLDERS.glob(f"{name}-*"), *FOLDERS.glob(f".{name}-*")):  # or half built
                shutil.rmtree(old)
            staging = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=FOLDERS))
            build(staging)
            staging.rename(folder)
    return folder


@cache
def _version() -> str:
    """Return a hash of the day, the interpreter, its threads, all sources and pinned packages."""
    digest = hashlib.sha256(
        f"{datetime.now(UTC):%Y-%m-%d} {sys.version} {os.environ.get('OMP_NUM_THREADS')}".encode()
    )
    worlds = ROOT / "tests" / "support"
    files = [ROOT / "constraints.txt", worlds / "small_world.py"]
    files += [worlds / "tiny_world.py", ROOT / "examples" / "features" / "features.py"]
    for package in SOURCES:
        files += sorted(path for path in (ROOT / package).rglob("*") if path.is_file())
    for path in files:
        if path.suffix in {".py", ".toml", ".yaml", ".txt"}:
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
