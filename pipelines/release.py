"""Packs trained models into a release and points ``releases/current`` at it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from feature_repo.dataset import DatasetSpec
from feature_repo.workspace import PROJECT_ROOT, MissingStage, Workspace, link_atomically, read_json, write_json
from serving.filters import FilterRules
from serving.release import load_release, write_manifest

DEFAULT_RULES = Path(__file__).resolve().parent.parent / "serving" / "filters.toml"


def make_release(workspace: Workspace, rules_file: Path | None = None) -> Path:
    """Pack the models of a workspace, check that the result loads, and make it the current release.

    Equal models and rules give the same release, so a second call changes nothing.

    Args:
        workspace: the working folder, trained.
        rules_file: filter rules; by default the ones that ship with Funnel.

    Raises:
        MissingStage: nothing is trained yet.
        SpecError: the rules file breaks its schema.

    """
    retrieval, ranking = workspace.models / "retrieval", workspace.models / "ranking"
    if not (retrieval / "report.json").is_file() or not (ranking / "report.json").is_file():
        raise MissingStage(f"no trained models in {workspace.models}: run 'funnel train' first")
    spec: DatasetSpec = workspace.spec()
    rules = FilterRules.load(rules_file or DEFAULT_RULES, spec.event_types)
    rankers = read_json(ranking / "report.json")
    ingest = read_json(workspace.ingest / "manifest.json")
    staging = workspace.releases / f".staging-{uuid.uuid4().hex}"
    _remove_leftovers(workspace.releases)
    shutil.copytree(retrieval, staging)
    shutil.copytree(ranking / rankers["best"], staging / "ranker")
    report = read_json(retrieval / "report.json")
    (staging / "report.json").unlink()
    write_json(staging / "metrics.json", {"retrieval": report, "ranking": rankers})
    write_json(staging / "filters.json", json.loads(rules.model_dump_json()))
    identity = write_manifest(
        staging,
        {
            "data_version": ingest["data_version"],
            "shift_s": ingest["shift_s"],
            "split": read_json(workspace.models / "split.json"),
            "code_version": code_version(),
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
    final = workspace.releases / identity
    if final.exists():
        shutil.rmtree(staging)
    else:
        os.replace(staging, final)
    load_release(final)
    link_atomically(workspace.releases / "current", final)
    return final


def _remove_leftovers(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(".staging-*"):
        shutil.rmtree(old)


def code_version() -> str:
    """Return the installed version and, in a checkout, the commit."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return version("funnel-recommender")
    return f"{version('funnel-recommender')}+{commit}"


def current_release(workspace: Workspace) -> Path:
    """Return the folder of the current release.

    Raises:
        MissingStage: there is none.

    """
    link = workspace.releases / "current"
    if not link.exists():
        raise MissingStage(f"no release in {workspace.releases}: run 'funnel release' first")
    return link.resolve()
