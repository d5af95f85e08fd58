"""Packs trained models into a release, and says which release is served: the one that ``releases/current`` points at.

Each time the pointer moves, a line of ``releases/history.jsonl`` says when, from where, where to
and by what.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from feature_repo.dataset import DatasetSpec
from feature_repo.errors import FunnelError
from feature_repo.files import link_atomically, read_json, write_atomically, write_json
from feature_repo.workspace import PROJECT_ROOT, MissingStage, Workspace
from ranking.training.train_rankers import VALIDATION
from serving.recommender.filters import FilterRules
from serving.releases.release import EVALUATION, MANIFEST, BadRelease, verify, write_manifest
from serving.releases.verify import check_release, registered_features

DEFAULT_RULES = Path(__file__).resolve().parents[2] / "serving" / "filters.toml"
HISTORY = "history.jsonl"

Cause = Literal["release", "promote", "rollback"]
"""What moved the pointer: a new release, or the operator."""


class UnknownRelease(FunnelError):
    """There is no such release, or several."""


@dataclass(frozen=True)
class ReleaseInfo:
    """What is known of a release without loading it; ``problem`` None: its files are what was released."""

    id: str
    created_at: str
    data_version: str
    current: bool
    ndcg: float | None
    problem: str | None


def make_release(
    workspace: Workspace, rules_file: Path | None = None, ranker: str | None = None
) -> Path:
    """Pack the models of a workspace, check the result, and make it the current release.

    Equal models and rules give the same release, so a second call changes nothing; one that was
    damaged since is put right.

    Args:
        workspace: the working folder, trained.
        rules_file: filter rules; by default the ones that ship with Funnel.
        ranker: name of a folder in ``models/ranking``; by default the ranker that was chosen in
            training.

    Raises:
        MissingStage: nothing is trained yet, or not this ranker.
        SpecError: the rules file breaks its schema.
        BadRelease: what was trained cannot be served; the current release stays.

    """
    retrieval, ranking = workspace.models / "retrieval", workspace.models / "ranking"
    if not (retrieval / "report.json").is_file() or not (ranking / "report.json").is_file():
        raise MissingStage(f"no trained models in {workspace.models}: run 'funnel train' first")
    spec: DatasetSpec = workspace.spec()
    rules = FilterRules.load(rules_file or DEFAULT_RULES, spec.event_types)
    rankers = read_json(ranking / "report.json")
    if ranker is not None:
        made = _named_ranker(ranking, ranker, rankers)
        rankers |= {"released": ranker, "figures": made["report"]}
        if "config" in made:  # of one that was made of a kind, and may be smaller
            rankers["config"] = made["config"]
    ingest = read_json(workspace.ingest / "manifest.json")
    with _pointer(workspace):
        _remove_leftovers(workspace.releases)
        staging = workspace.releases / f".staging-{uuid.uuid4().hex}"
        shutil.copytree(retrieval, staging)
        chosen = ranking / (ranker or rankers["best"])
        shutil.copytree(chosen, staging / "ranker", ignore=shutil.ignore_patterns(VALIDATION))
        report = read_json(retrieval / "report.json")
        (staging / "report.json").unlink()
        write_json(staging / "metrics.json", {"retrieval": report, "ranking": rankers})
        write_json(staging / "filters.json", json.loads(rules.model_dump_json()))
        versions = {
            "data_version": ingest["data_version"],
            "shift_s": ingest["shift_s"],
            "split": read_json(workspace.models / "split.json"),
            "code_version": code_version(),
            "created_at": _now(),
        }
        final = workspace.releases / write_manifest(staging, versions)
        _put(staging, final)
        _promote(workspace, final, "release")
    return final


def _named_ranker(ranking: Path, name: str, report: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of a named ranker; one that was made of a kind must be of its present training."""
    manifests = {
        path.parent.name: read_json(path) for path in sorted(ranking.glob("[!.]*/manifest.json"))
    }
    versions = {kind: figures["version"] for kind, figures in report["kinds"].items()}
    known = [
        of
        for of, manifest in manifests.items()
        if manifest["report"]["version"] == versions.get(manifest.get("of", of))
    ]
    if name not in known:
        raise MissingStage(
            f"no ranker '{name}' of the present training in {ranking}: choose from {', '.join(known)}, "
            "or run 'funnel compress' for smaller ones"
        )
    manifest: dict[str, Any] = manifests[name]
    return manifest


def _put(staging: Path, final: Path) -> None:
    """Make ``staging`` the release, unless it is there already, and whole."""
    if final.exists():
        try:
            verify(final)
        except BadRelease:
            os.replace(final, final.with_name(f".staging-{uuid.uuid4().hex}"))
        else:
            shutil.rmtree(staging)
            return
    os.replace(staging, final)


def _remove_leftovers(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(".staging-*"):
        shutil.rmtree(old)


def code_version() -> str:
    """Return the installed version and, in a checkout, the commit."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=PROJECT_ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return version("funnel-recommender")
    return f"{version('funnel-recommender')}+{commit}"


def promote(workspace: Workspace, release_id: str) -> Path:
    """Check a release and serve it from now on: running servers take it within a second, without a restart.

    Args:
        workspace: the working folder.
        release_id: the release's id, or the beginning of it.

    Raises:
        UnknownRelease: there is no such release, or several.
        BadRelease: it cannot be served; the current release stays.

    """
    folder = find_release(workspace, release_id)
    with _pointer(workspace):
        _promote(workspace, folder, "promote")
    return folder


def rollback(workspace: Workspace) -> Path:
    """Serve the release that was served before the current one.

    Twice in a row goes further back, as an undo does: who rolls back has seen that the newer one is
    bad, and must not get it again by rolling back from the next. The way forward is ``promote``.
    Releases that were deleted since are passed over.

    Raises:
        MissingStage: there is no release at all.
        UnknownRelease: none was served before.
        BadRelease: that one cannot be served; the current release stays, and any other can be
            promoted.

    """
    with _pointer(workspace):
        current = _pointed_at(workspace) or current_release(workspace)
        folders = [
            (workspace.releases / name).resolve()
            for name in _served_before(workspace, current.name)
        ]
        # An id may be a link to the release that took its place.
        earlier = [folder for folder in folders if folder.is_dir() and folder != current]
        if not earlier:
            raise UnknownRelease(
                f"no release was served before {current.name}: promote one, see 'funnel release list'"
            )
        _promote(workspace, earlier[-1], "rollback")
    return earlier[-1]


def releases(workspace: Workspace) -> list[ReleaseInfo]:
    """Return all releases, the oldest first."""
    current = _pointed_at(workspace)
    found = [_describe(folder, folder == current) for folder in _folders(workspace)]
    return sorted(found, key=lambda info: (info.created_at, info.id))


def find_release(workspace: Workspace, release_id: str) -> Path:
    """Return the folder of a release by its id, or by a beginning that no other id has.

    Raises:
        UnknownRelease: there is no such release, or several.

    """
    links = [
        path
        for path in workspace.releases.glob("[!.]*")
        if path.is_symlink() and path.name != "current"
    ]
    named = [*_folders(workspace), *links]
    exact = [path for path in named if path.name == release_id]
    found = {
        path.resolve() for path in exact or named if release_id and path.name.startswith(release_id)
    }
    if len(found) != 1:
        known = ", ".join(sorted(path.name for path in found)) or "none"
        several = (
            f"several releases begin with '{release_id}'" if found else f"no release '{release_id}'"
        )
        raise UnknownRelease(
            f"{several} in {workspace.releases} ({known}): see 'funnel release list'"
        )
    return found.pop()


def current_release(workspace: Workspace) -> Path:
    """Return the folder of the current release.

    Raises:
        MissingStage: there is none.

    """
    link = workspace.releases / "current"
    if not link.exists():
        raise MissingStage(f"no release in {workspace.releases}: run 'funnel release' first")
    return link.resolve()


def _promote(workspace: Workspace, folder: Path, by: Cause) -> None:
    previous, path = _pointed_at(workspace), workspace.releases / HISTORY
    check_release(folder, registered_features(workspace))
    # Also where it points there already: servers that have refused the release then try it again.
    link_atomically(workspace.releases / "current", workspace.releases / folder.name)
    if previous == folder.resolve():
        return
    entry = {
        "time": _now(),
        "release": folder.name,
        "previous": previous.name if previous else None,
        "by": by,
    }
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    write_atomically(path, f"{before}{json.dumps(entry)}\n")


def _pointed_at(workspace: Workspace) -> Path | None:
    link = workspace.releases / "current"
    return Path(os.path.realpath(link)) if link.is_symlink() else None


def _served_before(workspace: Workspace, current: str) -> list[str]:
    """Return what was served before, oldest first, without what was rolled back from."""
    way: list[str] = []
    for entry in [*_history(workspace), {"previous": current, "release": current, "by": "promote"}]:
        # The pointer may have been moved by hand, or by a run that was killed before it could say
        # so.
        for name in (entry["previous"], entry["release"]):
            if entry["by"] == "rollback" and name == entry["release"] and name in way:
                del way[len(way) - way[::-1].index(name) :]
            elif name and name != (way[-1] if way else None):
                way.append(name)
    return way[:-1]


def _history(workspace: Workspace) -> list[dict[str, Any]]:
    """Return the history; a line that cannot be read is passed over."""
    path, entries = workspace.releases / HISTORY, []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
            entries.append({name: entry[name] for name in ("previous", "release", "by")})
        except (ValueError, KeyError, TypeError):
            continue
    return entries


@contextmanager
def _pointer(workspace: Workspace) -> Iterator[None]:
    """Be the only one who makes and promotes releases."""
    workspace.releases.mkdir(parents=True, exist_ok=True)
    with (workspace.releases / ".lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _folders(workspace: Workspace) -> list[Path]:
    return [
        path.resolve()
        for path in workspace.releases.glob("[!.]*")
        if path.is_dir() and not path.is_symlink()
    ]


def _describe(folder: Path, current: bool) -> ReleaseInfo:
    try:
        manifest, problem = verify(folder), None
    except BadRelease as error:
        manifest, problem = _read(folder / MANIFEST), str(error).removeprefix(f"{folder}: ")
    ndcg = _part(_part(_part(_read(folder / EVALUATION), "models"), "funnel"), "ndcg@10")
    return ReleaseInfo(
        id=folder.name,
        created_at=str(_part(manifest, "created_at") or ""),
        data_version=str(_part(manifest, "data_version") or ""),
        current=current,
        ndcg=ndcg if isinstance(ndcg, float) else None,
        problem=problem,
    )


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def _part(values: Any, name: str) -> Any:
    return values.get(name) if isinstance(values, dict) else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
