"""The working folder of one data set: where every stage finds what the one before it left.

Everything Funnel writes lies below one folder (``work/<data>`` by default); ``work/current`` is a
link to the one in use, which is where ``feast`` run from ``feature_repo/`` looks.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_repo.dataset import DatasetSpec

PROJECT_ROOT = Path(__file__).resolve().parent.parent


class MissingStage(RuntimeError):
    """A stage needs what an earlier one has not made; the message names the command to run."""


@dataclass(frozen=True)
class Workspace:
    """Paths below one working folder."""

    root: Path

    @property
    def ingest(self) -> Path:
        """Typed tables, quarantine and the manifest of ingested batches."""
        return self.root / "ingest"

    @property
    def features(self) -> Path:
        """Offline feature tables of the latest finished run (a link, swapped atomically)."""
        return self.root / "features" / "current"

    @property
    def feast_registry(self) -> Path:
        """Feast's registry file."""
        return self.root / "feast" / "registry.db"

    @property
    def redis(self) -> Path:
        """Data, socket and log of the embedded Redis."""
        return self.root / "redis"

    @property
    def models(self) -> Path:
        """Checkpoints and trained models that are not released yet."""
        return self.root / "models"

    @property
    def tuning(self) -> Path:
        """Studies of hyper-parameters, and the best settings that they found."""
        return self.root / "tuning"

    @property
    def releases(self) -> Path:
        """Releases, one folder each; ``current`` is a link to the one that is served."""
        return self.root / "releases"

    @property
    def impressions(self) -> Path:
        """What was served: Parquet files, written by the server."""
        return self.root / "impressions"

    @property
    def peers(self) -> Path:
        """What ``funnel evaluate`` keeps of models that run in an environment of their own."""
        return self.root / "peers"

    @property
    def tracking(self) -> Path:
        """MLflow's local store."""
        return self.root / "mlflow"

    def spec(self) -> DatasetSpec:
        """Return the spec of the ingested data set.

        Raises:
            MissingStage: nothing has been ingested here.

        """
        path = self.ingest / "dataset.json"
        if not path.is_file():
            raise MissingStage(
                f"no data in {self.root}: run 'funnel ingest' (or 'make demo') first"
            )
        return DatasetSpec.model_validate_json(path.read_text(encoding="utf-8"))


def default_root() -> Path:
    """Return the working folder in use: ``FUNNEL_HOME``, else ``work/current`` in the project."""
    return Path(os.environ.get("FUNNEL_HOME") or PROJECT_ROOT / "work" / "current")


TEMPORARY = ".tmp"
"""How the name of a file ends that is still being written; it begins with a dot."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that readers see the old or the new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}")
    try:
        with temporary.open("xb") as file:  # unlike mkstemp's, readable by whom the umask allows
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys sorted, so that equal content gives equal bytes."""
    write_atomically(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def link_atomically(link: Path, target: Path) -> None:
    """Point a symbolic link at ``target`` in one step."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, link.parent))
    os.replace(temporary, link)


@contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``final`` that becomes ``final`` only if the block succeeds.

    What a killed run left behind is removed first, so a stage can always be run again.
    """
    staging, old = (final.with_name(f".{word}-{final.name}") for word in ("staging", "old"))
    for left in (staging, old):
        shutil.rmtree(left, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    if final.exists():
        os.replace(final, old)  # a rename, so that there is no finished folder only for a moment
    os.replace(staging, final)
    shutil.rmtree(old, ignore_errors=True)


def fingerprint(*parts: Any) -> str:
    """Return a short stable hash of JSON-like values: the version of what was made from them."""
    text = json.dumps(parts, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    # The order of a set differs from process to process.
    return sorted(value, key=str) if isinstance(value, set | frozenset) else str(value)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
