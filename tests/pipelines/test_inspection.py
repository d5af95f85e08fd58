"""What the notebooks look at is what the stages left."""

import numpy as np
import pandas as pd
import pytest

from feature_repo import columns as c
from pipelines.evaluation import inspection
from pipelines.evaluation.metrics import recall
from pipelines.features.point_in_time import PointInTime
from pipelines.ingest.ingested import read_events
from pipelines.training.ranking_sets import row_schema
from pipelines.training.split import epoch_seconds
from serving.releases.release import load_release
from tests.support.ingest_folder import MAY, rows_of, spec_of


def test_quarantine_has_every_bad_row(world):
    world.write("events.csv", rows_of(f"u1,i1,{MAY}", "u2,i2,never", f",i3,{MAY}"))
    world.ingest(spec_of())
    found = inspection.quarantined(world.workspace)
    assert sorted(found["line"]) == [3, 4] and found["reason"].nunique() == 2


def test_quarantine_of_clean_data_is_an_empty_table(built):
    assert list(inspection.quarantined(built.workspace).columns) == [
        "file",
        "line",
        "reason",
        "row",
    ]
    assert len(inspection.quarantined(built.workspace)) == 0


def test_ages_are_from_the_newest_row_that_was_known(built):
    events = read_events(built.workspace)
    at = events[c.TIMESTAMP].iloc[len(events) // 2]
    known = events[events[c.POSITIVE] & (events[c.TIMESTAMP] <= at)]
    wanted = (at - known.groupby(c.USER)[c.TIMESTAMP].max()).dt.total_seconds() / 86_400
    assert np.allclose(
        np.sort(inspection.ages(built.workspace, "user_history", at)), np.sort(wanted), atol=1e-6
    )


def test_user_features_count_what_had_happened(built):
    events = read_events(built.workspace)
    user = events[c.USER].value_counts().index[0]
    times = epoch_seconds(events.loc[events[c.USER] == user, c.TIMESTAMP])
    asked = np.array([times[0], times[-1] + 86_400.0])
    rows = inspection.user_features(PointInTime(built.workspace), np.full(2, user), asked)
    assert pd.isna(rows["events_all"][0]) and rows["events_all"][1] == len(times)


def test_what_is_missing_is_none_or_no_number_or_an_empty_list():
    rows = pd.DataFrame(
        {"number": [1.0, np.nan], "text": [None, "a"], "list": [[], [1]], "whole": [0, ""]}
    )
    assert inspection.missing_shares(rows).to_dict() == {
        "number": 0.5,
        "text": 0.5,
        "list": 0.5,
        "whole": 0.0,
    }


def test_replayed_retrieval_is_what_the_evaluation_says(built, evaluation):
    found = inspection.replay_retrieval(built.workspace, load_release(built.release), 1_000_000)
    assert len(found.vectors) == evaluation["events"]
    for name in ("two_tower", "popular"):
        assert recall(found.ranks[name], 10) == pytest.approx(
            evaluation["models"][name]["recall@10"]
        )
    assert found.proposed.any(axis=1).mean() >= evaluation["candidates"]["recall@500"] - 0.01


def test_held_out_rows_are_what_rankers_take(built):
    rows = inspection.held_out_rows(built.workspace, 40)
    rows.check(row_schema(load_release(built.release).codec))
    assert 30 <= len(rows.group_sizes()) <= 40
    assert rows.positive().any()
