"""Packs trained models into a release and makes it the current one."""

from __future__ import annotations

import json
import shutil
import subprocess
import uuid
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from feature_repo.files import publish_folder, read_json, write_json
from feature_repo.stage_locks import Written, stage_lock
from feature_repo.workspace import PROJECT_ROOT, MissingStage, Workspace
from pipelines.training import release_history
from pipelines.training.release_pointer import point_at, pointer_lock
from pipelines.training.reports import generator_id
from ranking.training.train_rankers import VALIDATION
from serving.recommender.filters import FilterRules
from serving.releases.manifest import BadRelease, Provenance, verify_files, write_manifest

DEFAULT_RULES = Path(__file__).resolve().parents[2] / "serving" / "filters.toml"
_STAGING = ".staging-"


def make_release(
    workspace: Workspace, rules_file: Path | None = None, ranker: str | None = None
) -> Path:
    """Pack the models of a workspace, check the result, and make it the current release.

    Equal models and rules give the same release, so a second call changes nothing; one that was
    damaged since is repaired.

    Args:
        workspace: the working folder, trained.
        rules_file: filter rules; by default the ones that ship with Funnel.
        ranker: name of a folder in ``models/ranking``; by default the ranker that was chosen in
            training.

    Raises:
        MissingStage: nothing is trained yet, or not this ranker.
        SpecError: the rules file breaks its schema.
        BadRelease: what was trained cannot be served; the current release stays.
        StageRunning: a training works on the models.

    """
    with stage_lock(workspace, Written.MODELS, shared=True):
        return _make_release(workspace, rules_file, ranker)


def _make_release(workspace: Workspace, rules_file: Path | None, ranker: str | None) -> Path:
    """Make a release of models that nobody changes meanwhile; see ``make_release``."""
    for part in ("retrieval", "ranking"):
        if not (workspace.models / part / "report.json").is_file():
            raise MissingStage(f"no trained models in {workspace.models}: run 'funnel train' first")
    rules = FilterRules.load(rules_file or DEFAULT_RULES, workspace.spec().event_types)
    report = _ranking_report(workspace.models, ranker)

    with pointer_lock(workspace):
        _remove_leftovers(workspace.releases)
        staging = workspace.releases / f"{_STAGING}{uuid.uuid4().hex}"
        _copy_models(workspace, staging, ranker or report["best"], report)
        write_json(staging / "filters.json", json.loads(rules.model_dump_json()))

        final = workspace.releases / write_manifest(staging, _provenance(workspace))
        _move_into_place(staging, final)
        point_at(workspace, final, "release")
    return final


def _ranking_report(models: Path, ranker: str | None) -> dict[str, Any]:
    """Return the report of the rankers' training, with the figures of the named one if any.

    Raises:
        MissingStage: the rankers did not learn from the candidate generator beside them, or a
            ranker's folder is of another training than the report.

    """
    ranking = models / "ranking"
    report: dict[str, Any] = read_json(ranking / "report.json")
    if report.get("trained_on") != generator_id(models):
        raise MissingStage(
            f"the rankers in {ranking} were not trained on the towers in {models / 'retrieval'} "
            "(a training was stopped in between, or is of an earlier version): "
            "run 'funnel train' first; finished parts are kept"
        )
    manifest = _ranker_manifest(ranking, ranker or report["best"], report)
    if ranker is not None:
        report |= {"released": ranker, "figures": manifest["report"]}
        # A compressed ranker has settings of its own.
        if "config" in manifest:
            report["config"] = manifest["config"]
    return report


def _ranker_manifest(ranking: Path, name: str, report: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of a named ranker of the present training.

    A compressed ranker must be made from a kind of that training.
    """
    manifests = {
        path.parent.name: read_json(path) for path in sorted(ranking.glob("[!.]*/manifest.json"))
    }
    versions = {kind: figures["version"] for kind, figures in report["kinds"].items()}
    known = [
        ranker
        for ranker, manifest in manifests.items()
        if manifest["report"]["version"] == versions.get(manifest.get("of", ranker))
    ]
    if name == report["best"] and name not in known:
        raise MissingStage(
            f"{ranking / name} is of another training than {ranking / 'report.json'} "
            "(a training was stopped in between): run 'funnel train' first; finished parts are kept"
        )
    if name not in known:
        raise MissingStage(
            f"no ranker '{name}' of the present training in {ranking}: "
            f"choose from {', '.join(known)}, or run 'funnel compress' for smaller ones"
        )
    manifest: dict[str, Any] = manifests[name]
    return manifest


def _copy_models(
    workspace: Workspace, staging: Path, ranker: str, ranking_report: dict[str, Any]
) -> None:
    """Copy the candidate generator and a ranker into a new folder, and write their reports."""
    shutil.copytree(workspace.models / "retrieval", staging)
    shutil.copytree(
        workspace.models / "ranking" / ranker,
        staging / "ranker",
        ignore=shutil.ignore_patterns(VALIDATION),
    )
    retrieval_report = read_json(staging / "report.json")
    (staging / "report.json").unlink()
    metrics = {"retrieval": retrieval_report, "ranking": ranking_report}
    write_json(staging / "metrics.json", metrics)


def _provenance(workspace: Workspace) -> Provenance:
    """Return what a release is made from: data, split, code and time."""
    ingest = read_json(workspace.ingest / "manifest.json")
    return Provenance(
        data_version=ingest["data_version"],
        shift_s=ingest["shift_s"],
        split=read_json(workspace.models / "split.json"),
        code_version=code_version(),
        created_at=release_history.now(),
    )


def _move_into_place(staging: Path, final: Path) -> None:
    """Make ``staging`` the release, unless it exists already and is intact."""
    if final.exists():
        with suppress(BadRelease):
            verify_files(final)
            shutil.rmtree(staging)
            return
    publish_folder(staging, final, final.with_name(f"{_STAGING}{uuid.uuid4().hex}"))


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed runs left."""
    for old in folder.glob(f"{_STAGING}*"):
        shutil.rmtree(old)


def code_version() -> str:
    """Return the installed version and, in a checkout, the commit."""
    installed = version("funnel-recommender")
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=PROJECT_ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return installed
    return f"{installed}+{commit}"
