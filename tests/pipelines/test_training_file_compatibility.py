"""What commit 97f4b5b wrote beside its models and releases is read, and written as it was then.

``tests/data/training-97f4b5b.json`` holds the split, the sample's settings, the report of the
candidate generator, the history of releases, and an evaluation, shortened to a few models and
slices, with a comparison, ablations and baselines.
"""

import json
from pathlib import Path

import pytest

from feature_repo.files import write_json
from feature_repo.workspace import Workspace
from pipelines.evaluation.figures import Evaluation
from pipelines.training.config import SampleConfig
from pipelines.training.release_history import HISTORY, served_before
from pipelines.training.reports import RetrievalReport
from pipelines.training.split import Split

STORED = json.loads((Path(__file__).parent.parent / "data" / "training-97f4b5b.json").read_text())


def test_the_split_keeps_the_stored_name_of_its_selection_part():
    split = Split.from_dict(STORED["split"])
    assert split.ranker < split.calibrate < split.selection == STORED["split"]["choose"]
    assert split.to_dict() == STORED["split"]


def test_the_sample_keeps_its_stored_names():
    sample = SampleConfig.from_dict(STORED["sample"])
    assert sample.selection_requests == STORED["sample"]["choose_requests"] == 60
    assert sample.to_dict() == STORED["sample"]


def test_the_report_of_the_candidate_generator(tmp_path):
    write_json(tmp_path / "report.json", STORED["retrieval_report"])
    report = RetrievalReport.load(tmp_path)
    assert report.settings.epochs == 2 and report.shape.dimension == 64
    before = (tmp_path / "report.json").read_bytes()
    report.save(tmp_path)
    assert (tmp_path / "report.json").read_bytes() == before


@pytest.mark.parametrize("missing", [(), ("ablations", "against", "share_of_best_possible")])
def test_an_evaluation(tmp_path, missing):
    stored = {name: value for name, value in STORED["evaluation"].items() if name not in missing}
    write_json(tmp_path / "evaluation.json", stored)
    evaluation = Evaluation.load(tmp_path)
    assert evaluation.models["funnel"] == stored["models"]["funnel"]
    before = (tmp_path / "evaluation.json").read_bytes()
    evaluation.save(tmp_path)
    assert (tmp_path / "evaluation.json").read_bytes() == before


def test_an_evaluation_without_baselines_and_without_intervals(tmp_path):
    stored = {**STORED["evaluation"], "baselines": None, "intervals": {"funnel": {"ndcg@10": None}}}
    write_json(tmp_path / "evaluation.json", stored)
    assert Evaluation.load(tmp_path).to_dict() == stored


def test_the_history_of_releases(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.releases.mkdir()
    later = '{"time": "t", "release": "two", "previous": "864a8b001b3f50a6", "by": "promote"}\n'
    (workspace.releases / HISTORY).write_text(STORED["history"] + "no JSON\n" + later)
    assert served_before(workspace, "two") == ["864a8b001b3f50a6"]
