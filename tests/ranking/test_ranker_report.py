"""A report that commit 97f4b5b stored is read, and written again with the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from feature_repo.files import write_json
from ranking.report import RankerReport

STORED = Path(__file__).parent / "stored"


def test_a_stored_report_is_read_and_written_alike(tmp_path: Path) -> None:
    report = RankerReport.load(STORED)
    assert report.best == "logistic" and report.config.kinds == ("popularity", "logistic")
    assert report.behind["logistic"].below == 0.0 < report.behind["popularity"].below
    assert report.kinds["logistic"].heads["click"].auc is not None and report.positions is None
    write_json(tmp_path / "report.json", report.to_dict())
    assert (tmp_path / "report.json").read_bytes() == (STORED / "report.json").read_bytes()


def test_a_report_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RankerReport.load(STORED).best = "dcn"
