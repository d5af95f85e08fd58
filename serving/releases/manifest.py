"""The manifest of a release: what it was made from, and every file with its SHA-256.

The release's id is the hash of that list, so two releases with equal content have equal ids. Only
``evaluation.json``, which is measured afterwards, lies outside it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, ValidationError

from feature_repo.errors import FunnelError
from feature_repo.files import read_json, write_json
from feature_repo.hashing import file_hash

MANIFEST = "manifest.json"
EVALUATION = "evaluation.json"
FORMAT = 3


class BadRelease(FunnelError):
    """A release cannot be served; the message says what is wrong with it."""


class Provenance(BaseModel):
    """What a release was made from; it does not count for the release's id.

    Attributes:
        data_version: hash of the ingested data.
        shift_s: seconds by which the timestamps of a synthetic world were shifted.
        split: where each part of the log begins, epoch seconds, by its stored name.
        code_version: of Funnel.
        created_at: ISO 8601.
        replaces: ids of the releases that an erasure replaced by this one.

    """

    model_config = ConfigDict(frozen=True, extra="allow")

    data_version: str = ""
    shift_s: int = 0
    split: dict[str, float] = {}
    code_version: str = ""
    created_at: str = ""
    replaces: list[str] = []


class ReleaseManifest(Provenance):
    """``manifest.json``.

    Attributes:
        format: of the release folder.
        release: the id.
        files: SHA-256 of every file, by its path below the folder.

    """

    format: int | None = None
    release: str = ""
    files: dict[str, str]

    @property
    def provenance(self) -> Provenance:
        """What the release was made from, for the manifest of a copy."""
        values = self.model_dump(exclude_unset=True, exclude={"format", "release", "files"})
        return Provenance.model_validate(values)


def read_manifest(folder: Path) -> ReleaseManifest:
    """Return the manifest of a release, whatever its format.

    Raises:
        BadRelease: there is none, or it cannot be read.

    """
    path = folder / MANIFEST
    try:
        if not path.is_file():  # to open a pipe would wait for ever
            raise FileNotFoundError("no such file")
        return ReleaseManifest.model_validate(read_json(path))
    except ValidationError as error:
        problem = "; ".join(
            f"{'.'.join(map(str, part['loc']))}: {part['msg']}".removeprefix(": ")
            for part in error.errors()
        )
        raise BadRelease(f"{folder}: no readable {MANIFEST} ({problem})") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadRelease(f"{folder}: no readable {MANIFEST} ({error})") from None


def write_manifest(folder: Path, provenance: Provenance, *, format: int | None = FORMAT) -> str:
    """Describe every file of a folder in its manifest and return the release's id.

    Args:
        folder: the finished content.
        provenance: what it was made from.
        format: of the folder's content.

    """
    files = {name: file_hash(folder / name) for name in sorted(_contents(folder))}
    release = _id_of(files)
    values = provenance.model_dump(exclude_unset=True)
    write_json(folder / MANIFEST, {"format": format, "release": release, "files": files, **values})
    return release


def verify_files(folder: Path) -> ReleaseManifest:
    """Check a release's files against its manifest and return the manifest.

    Raises:
        BadRelease: no readable manifest, another format, a file missing, changed or added.

    """
    manifest = read_manifest(folder)
    if manifest.format != FORMAT:
        raise BadRelease(f"{folder}: format {manifest.format}, this version reads {FORMAT}")
    if manifest.release != _id_of(manifest.files):
        raise BadRelease(f"{folder}: the manifest's own hash does not fit its list of files")

    # Look for all of them first: a copy that is under way is refused before anything is hashed.
    missing = [
        name for name in manifest.files if not (_is_within(name) and (folder / name).is_file())
    ]
    if missing:
        raise BadRelease(f"{folder}: {', '.join(missing)} is missing")
    for name, expected in manifest.files.items():
        if file_hash(folder / name) != expected:
            raise BadRelease(f"{folder}: {name} is not what was released (its hash differs)")

    added = sorted(_contents(folder) - set(manifest.files))
    if added:
        raise BadRelease(f"{folder}: {', '.join(added)} is not part of what was released")
    return manifest


def file_states(folder: Path) -> frozenset[tuple[str, int, int, int]]:
    """Return name, size, time and inode of every file; other values mean other content."""
    states = [
        (name, (folder / name).stat())
        for name in _contents(folder) | {MANIFEST}
        if (folder / name).exists()
    ]
    return frozenset((name, of.st_size, of.st_mtime_ns, of.st_ino) for name, of in states)


def _is_within(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _contents(folder: Path) -> set[str]:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    # An evaluation that was killed may leave its unfinished file behind.
    unfinished = {name for name in names if name.startswith(f".{EVALUATION}.")}
    return names - unfinished - {MANIFEST, EVALUATION}


def _id_of(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
