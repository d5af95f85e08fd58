"""A report that commit 97f4b5b stored is read, and written again with the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

from retrieval.towers.report import TowerTrainingReport

STORED = Path(__file__).parent / "stored"


def test_a_stored_report_is_read_and_written_alike(tmp_path: Path) -> None:
    version = json.loads((STORED / "report.json").read_text())["version"]
    report = TowerTrainingReport.load(STORED, version)
    assert report is not None and report.recall_at > 0 and len(report.curve) == 1
    report.save(tmp_path, version)
    assert (tmp_path / "report.json").read_bytes() == (STORED / "report.json").read_bytes()


def test_a_report_of_another_version_is_none() -> None:
    assert TowerTrainingReport.load(STORED, "another") is None
    assert TowerTrainingReport.load(STORED / "nowhere", "another") is None
