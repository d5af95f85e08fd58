"""The evaluation of the built world: do its parts fit each other."""

import json

import numpy as np
import pytest

from feature_repo import columns as c
from pipelines import display
from pipelines.evaluation import baseline_tuning as tuning
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.figures import Evaluation, Gap
from pipelines.evaluation.replayed_requests import histories
from pipelines.evaluation.report import show
from pipelines.evaluation.slices import (
    MAX_VALUES,
    MIN_EVENTS,
    MISSING,
    OTHER,
    Dimension,
    slice_figures,
    value_names,
)
from pipelines.ingest.ingested import read_events
from pipelines.training.past_requests import InteractionHistory, requests_from
from pipelines.training.release import make_release
from pipelines.training.release_pointer import UnknownRelease, current_release
from pipelines.training.split import epoch_seconds
from pipelines.workflow.stages import run_evaluate
from serving.releases.manifest import EVALUATION
from serving.releases.release import load_release

LIMIT = 300


def silent(*_):
    pass


@pytest.fixture(scope="module")
def log(built):
    return read_events(built.workspace)


def test_every_model_has_every_figure(evaluation):
    figures = evaluation["models"]
    assert {"newest", "item_knn", "ease", "ials"} < set(figures)
    assert {frozenset(of) for of in figures.values()} == {frozenset(figures["funnel"])}
    for of in figures.values():
        assert 0.0 <= of["gini@10"] <= 1.0 and 0.0 <= of["popularity@10"] <= 1.0
        assert 0.0 <= of["diversity@10"] <= 2.0 and 0.0 <= of["category_diversity@10"] <= 1.0
    assert figures["popular"]["popularity@10"] > 0.9 > figures["random"]["popularity@10"]
    assert figures["popular"]["gini@10"] > figures["random"]["gini@10"]


def test_baselines_that_learn_are_better_than_popularity(evaluation):
    ndcg = {name: of["ndcg@10"] for name, of in evaluation["models"].items()}
    assert min(ndcg["item_knn"], ndcg["ease"], ndcg["ials"]) > ndcg["popular"]


def test_settings_are_the_best_on_validation(evaluation):
    for name, of in evaluation["baselines"]["settings"].items():
        tried = [{key: one[key] for key in of["chosen"]} for one in of["validation"]]
        assert len(tried) > len(tuning.LADDERS[name][1]) and all(
            tried.count(one) == 1 for one in tried
        )
        best = max(of["validation"], key=lambda tried: tried["ndcg@10"])
        assert {key: best[key] for key in of["chosen"]} == of["chosen"]


def test_slices_add_up_to_the_whole(evaluation):
    found = evaluation
    assert set(found["slices"]) == {
        "user",
        "item",
        "age_group",
        "country",
        "device",
        "genre",
        "brand",
        "price",
    }
    for values in found["slices"].values():
        assert sum(of["events"] for of in values.values()) == found["events"]
        for model, figures in found["models"].items():
            whole = (
                sum(of["events"] * of["ndcg@10"][model] for of in values.values()) / found["events"]
            )
            assert whole == pytest.approx(figures["ndcg@10"])


def test_gaps_are_between_values_that_have_events_enough(evaluation):
    assert evaluation["gaps"]
    for name, gap in evaluation["gaps"].items():
        high, low = (evaluation["slices"][name][gap[end]] for end in ("highest", "lowest"))
        assert min(high["events"], low["events"]) >= MIN_EVENTS
        assert (
            gap["gap"] == pytest.approx(high["ndcg@10"]["funnel"] - low["ndcg@10"]["funnel"])
            and gap["gap"] >= 0
        )
        assert gap["interval"][0] <= gap["gap"] <= gap["interval"][1]


def test_intervals_hold_their_figures(evaluation):
    for name, intervals in evaluation["intervals"].items():
        for metric, (low, high) in intervals.items():
            assert low <= evaluation["models"][name][metric] <= high
    beaten = evaluation["funnel_minus"]["random"]
    assert (
        beaten["interval"][0] > 0 and beaten["p_bootstrap"] < 0.01 and beaten["p_wilcoxon"] < 0.01
    )


def test_histories_hold_what_came_before_and_nothing_else(built, log):
    codec = load_release(built.release).codec
    rows = np.random.default_rng(1).choice(np.flatnonzero(log[c.POSITIVE]), 40, replace=False)
    requests = requests_from(log.iloc[np.sort(rows)], codec)
    found = histories(InteractionHistory(log, codec), requests, len(codec.items))
    time = epoch_seconds(log[c.TIMESTAMP])
    for row in range(len(requests)):
        before = log[
            (time < requests.time[row]) & (log[c.USER] == requests.user[row]) & log[c.POSITIVE]
        ]
        assert sorted(found[row].indices.tolist()) == sorted(
            set(codec.items.encode(before[c.ITEM].tolist()).tolist())
        )
        assert (found[row].data == 1).all()


def test_what_cannot_be_fitted_is_named(built, log, monkeypatch):
    release = load_release(built.release)
    monkeypatch.setattr(tuning, "LARGEST_EASE", 100)
    monkeypatch.setattr(tuning, "LADDERS", {"ease": tuning.LADDERS["ease"]})
    found = tuning.tuned_baselines(release, log, InteractionHistory(log, release.codec), silent)
    assert not found.models and "250 items" in found.left_out["ease"]


def test_a_release_against_itself_and_against_another(copied, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(display.console, "width", 200)  # a header broken in two is not found below
    release = current_release(copied)
    rules = tmp_path / "rules.toml"
    rules.write_text("max_per_category = 1\n")
    other = make_release(copied, rules)
    same = evaluate(
        copied, release, silent, LIMIT, baselines=False, ablations=True, against=release
    )
    assert (
        json.loads((release / EVALUATION).read_text())
        == same.to_dict()
        == Evaluation.load(release).to_dict()
    )
    assert same == Evaluation.load(release)
    shown = same
    same = same.to_dict()
    assert same["against"]["release"] == same["release"] and same["against"]["events"] == LIMIT
    for of in same["against"]["metrics"].values():
        assert of["difference"] == 0.0 and of["p_bootstrap"] == of["p_wilcoxon"] == 1.0
    _ablations_make_sense(same)
    show(shown)
    told = capsys.readouterr().err
    assert all(word in told for word in ("Slices", "Gaps", "Ablations", "two_tower", "p Wilcoxon"))

    alone = evaluate(copied, other, silent, LIMIT, baselines=False).to_dict()
    pair = evaluate(copied, release, silent, LIMIT, baselines=False, against=other).to_dict()
    pair = pair["against"]
    assert pair["release"] == other.name
    for metric, of in pair["metrics"].items():
        assert of["second"] == pytest.approx(alone["models"]["funnel"][metric])
        assert of["first"] == pytest.approx(same["models"]["funnel"][metric])
        assert of["interval"][0] <= of["difference"] <= of["interval"][1]
    assert pair["metrics"]["recall@10"]["difference"] != 0.0


def _ablations_make_sense(figures):
    found, whole = figures["ablations"], figures["models"]["funnel"]["ndcg@10"]
    assert {"candidates: two_tower", "candidates: new"} < set(found) and len(found) == 10
    for of in found.values():
        assert of["second"] == pytest.approx(whole)
        assert of["difference"] == pytest.approx(of["first"] - of["second"])
    assert found["user_history"]["difference"] < -0.02
    assert (
        found["user_history"]["difference"] < found["streaming"]["difference"] < 0.0
    )  # histories end at midnight
    assert found["ranker"]["first"] == pytest.approx(
        figures["models"]["two_tower"]["ndcg@10"], abs=0.01
    )


def test_an_unknown_release_is_named_before_anything_is_computed(built):
    with pytest.raises(UnknownRelease, match="no release 'nope'"):
        run_evaluate(built.workspace, against="nope")


def test_rare_values_are_put_together():
    labels = np.array(["a"] * MIN_EVENTS + ["b"] * (MIN_EVENTS - 1) + ["c"] * 3, dtype=object)
    part = Dimension.from_labels("x", labels)
    assert [
        (value, int((part.of_event == row).sum())) for row, value in enumerate(part.values)
    ] == [
        (OTHER, MIN_EVENTS + 2),
        ("a", MIN_EVENTS),
    ]


def test_only_the_most_frequent_values_are_told_apart():
    labels = np.repeat(
        [f"v{row:02}" for row in range(MAX_VALUES + 2)],
        [MIN_EVENTS + 1] * MAX_VALUES + [MIN_EVENTS] * 2,
    ).astype(object)
    part = Dimension.from_labels("x", labels)
    assert (
        len(part.values) == MAX_VALUES + 1
        and int((part.of_event == part.values.index(OTHER)).sum()) == 2 * MIN_EVENTS
    )


def test_values_of_attributes_by_hand():
    assert value_names("categorical", ["a", None, "b"]).tolist() == ["a", MISSING, "b"]
    assert value_names("multi_categorical", [["x", "y"], [], None]).tolist() == [
        "x",
        MISSING,
        MISSING,
    ]
    found = value_names("numeric", [1.0, 2.0, None, 3.0, 4.0, float("nan")])
    assert found.tolist() == ["up to 2", "up to 2", MISSING, "up to 3", "above 3", MISSING]
    assert value_names("numeric", [None, None]).tolist() == [MISSING, MISSING]
    assert set(value_names("numeric", [7.0, 7.0])) == {"up to 7"}


def test_slices_by_hand():
    users = np.repeat(np.arange(60), 2)
    labels = np.array(["x", "y"] * 60, dtype=object)
    ndcg = {"funnel": np.tile([1.0, 0.25], 60), "popular": np.zeros(120)}
    slices, gaps = slice_figures([Dimension.from_labels("kind", labels)], users, ndcg, "funnel")
    expected = {
        "events": 60,
        "users": 60,
        "ndcg@10": {"funnel": 1.0, "popular": 0.0},
        "interval": (1.0, 1.0),
    }
    assert slices["kind"]["x"].model_dump(by_alias=True) == expected
    assert gaps == {"kind": Gap(gap=0.75, highest="x", lowest="y", interval=(0.75, 0.75))}
