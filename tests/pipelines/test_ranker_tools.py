"""Importance, learning curve and compression on the tiny world, and compressed releases."""

from __future__ import annotations

from dataclasses import replace

import pytest

from feature_repo.files import read_json, write_json
from feature_repo.workspace import MissingStage, Workspace
from pipelines.training.compress import compress
from pipelines.training.importance import importance
from pipelines.training.importance import show as show_importance
from pipelines.training.learning_curve import learning_curve
from pipelines.training.release import make_release
from pipelines.training.release_pointer import current_release
from pipelines.training.warm_start import BaseRelease
from ranking.config import RankerConfig
from ranking.report import RankerReport
from ranking.training.distil import student_config
from serving.releases.manifest import verify_files
from serving.releases.release import load_release
from tests.support.small_world import silent
from tests.support.tiny_world import RANKERS, SAMPLE


def test_importance_of_the_served_features(tiny: Workspace) -> None:
    release = load_release(current_release(tiny))
    result = importance(tiny, requests=80, repeats=2, k=10, progress=silent)
    schema = release.recommender.ranker.schema
    assert {one["name"] for one in result["features"]} == {*schema.numeric, *schema.categorical}
    levels = {one["name"]: one["permuted"] for one in result["features"]}
    assert levels["tower_score"] == "within" and levels["hour_of_day"] == "across"
    assert result["features"][0]["drop"] > 0
    assert set(result["calibration"]) == set(schema.heads)
    show_importance(result, 10)
    assert read_json(tiny.releases / f"importance-{release.id}.json") == result
    verify_files(current_release(tiny))  # the release's own files are what they were


def test_compressed_rankers_are_released_when_asked_for(
    tiny: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    of: list[RankerConfig] = []
    monkeypatch.setattr(
        "pipelines.training.compress.student_config",
        lambda config: of.append(config) or student_config(config),
    )
    with pytest.raises(MissingStage, match="no ranker 'dcn-int8-static' .* run 'funnel compress'"):
        make_release(tiny, ranker="dcn-int8-static")
    kept = {path.name: path.read_bytes() for path in (tiny.models / "ranking" / "dcn").iterdir()}
    result = compress(tiny, SAMPLE, silent)
    assert kept == {
        path.name: path.read_bytes() for path in (tiny.models / "ranking" / "dcn").iterdir()
    }
    assert of and set(of) == {RANKERS}  # as the originals were trained
    found = result["rankers"]
    assert {"dcn", "dcn-student", "dcn-int8-dynamic", "dcn-int8-static"} <= set(found)
    for name, one in found.items():
        original = found[one["of"]]
        assert one["ms"] > 0 and one["ndcg"] > 0.8 * original["ndcg"]
        assert (name == one["of"]) == (one["speed"] == 1.0)
        if "student" in name:
            assert one["bytes"] < original["bytes"]
    chosen = current_release(tiny)
    small = make_release(tiny, ranker="dcn-int8-static")
    assert small != chosen and load_release(small).recommender.ranker.kind == "dcn"
    assert read_json(small / "metrics.json")["ranking"]["released"] == "dcn-int8-static"
    make_release(tiny, ranker="dcn-student")
    assert BaseRelease.of(tiny).rankers == student_config(replace(RANKERS, kinds=("dcn",)))
    assert make_release(tiny) == chosen  # nothing was asked for
    report = tiny.models / "ranking" / "report.json"
    of_later = read_json(report)
    of_later["kinds"]["dcn"]["version"] = "of another training"
    write_json(report, of_later)
    with pytest.raises(MissingStage, match="no ranker 'dcn-int8-static' of the present training"):
        make_release(tiny, ranker="dcn-int8-static")


def test_a_learning_curve_ends_where_the_training_did(tiny: Workspace) -> None:
    result = learning_curve(tiny, ("lambdarank",), None, silent)
    [kind] = result["kinds"]
    trained = RankerReport.load(tiny.models / "ranking")
    assert trained.config == RANKERS != RankerConfig()
    assert result["points"][-1]["ndcg"][kind] == trained.kinds[kind].ndcg
    assert [one["share"] for one in result["points"]] == [0.125, 0.25, 0.5, 1.0]
    assert all(0 < one["ndcg"][kind] < 1 for one in result["points"])
