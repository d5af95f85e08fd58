"""A feature declared once: from a ``features.py`` to table, training row, request and stream.

The values are counted here from the events, by no code of the product.
"""

import random
import time
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from feast import FeatureStore

from feature_repo import columns as c
from feature_repo.stores.feature_store import feature_store
from pipelines.training.release_pointer import current_release
from pipelines.workflow.stages import run_materialize
from serving.api.schemas import RecommendationRequest
from serving.engine import Engine
from serving.releases.release import load_release
from tests.support.streaming_job import streaming
from tests.support.tiny_world import tiny_world

NAMES = ["spend_1h", "spend_7d", "dearest", "bought_7d"]


@pytest.fixture(scope="module")
def shop(copy, tmp_path_factory):
    """The tiny world, whose ``features.py`` is tests/support/tiny_features.py, materialized."""
    with copy(tiny_world(), tmp_path_factory.mktemp("shop") / "w") as workspace:
        run_materialize(workspace)
        yield workspace


@pytest.fixture(scope="module")
def events(shop):
    table = pd.read_parquet(shop.ingest / "events")
    return table.assign(micros=table[c.TIMESTAMP].astype("datetime64[us, UTC]").astype("int64"))


def counted(events, user, micros):
    """Return a user's features as of a time, from the events."""
    mine = events[(events[c.USER] == user) & (events[c.TYPE] == "purchase")]
    past = mine[mine["micros"] <= micros].sort_values("micros")

    def within(seconds):
        pane = seconds * 1_000_000 // 60
        return past[past["micros"] // pane > micros // pane - 60]

    return {
        "spend_1h": round(within(3_600)[c.VALUE].sum(), 6),
        "spend_7d": round(within(7 * 86_400)[c.VALUE].sum(), 6),
        "dearest": past[c.VALUE].max() if len(past) else None,
        "bought_7d": len(within(7 * 86_400)),
    }


def agree(found, expected):
    for name in NAMES:
        want = expected[name]
        assert found[name] == pytest.approx(want, abs=1e-6) if want else not found[name], name


def test_training_rows_have_the_values_of_their_time(shop, events):
    rng = random.Random(1)
    bought = events[events[c.TYPE] == "purchase"]
    rows = bought.sample(60, random_state=1)
    users = rows[c.USER].tolist()
    micros = [moment + rng.choice([-1, 0, 60, 3_000, 90_000]) * 10**6 for moment in rows["micros"]]
    frame = pd.DataFrame(
        {c.USER: users, c.EVENT_TIMESTAMP: pd.to_datetime(micros, unit="us", utc=True)}
    )
    joined = (
        feature_store(shop)
        .get_historical_features(entity_df=frame, features=[f"spend:{name}" for name in NAMES])
        .to_df()
    )
    assert len(joined) == 60
    nonzero = 0
    for (_, row), user, moment in zip(joined.iterrows(), users, micros, strict=True):
        found = {name: None if row[name] != row[name] else row[name] for name in NAMES}
        agree(found, counted(events, user, moment))
        nonzero += bool(found["spend_1h"])
    assert nonzero > 10


def test_feast_reads_online_what_the_events_say_now(shop, events):
    users = sorted(events[c.USER].unique())
    store: FeatureStore = feature_store(shop)
    read = store.get_online_features(
        features=[f"spend:{name}" for name in NAMES], entity_rows=[{c.USER: u} for u in users]
    ).to_dict()
    assert set(read) == {c.USER, *NAMES}
    now = time.time_ns() // 1_000
    for n, user in enumerate(users):
        agree({name: read[name][n] for name in NAMES}, counted(events, user, now))
    assert sum(bool(value) for value in read["dearest"]) > 5


def test_the_ranker_reads_it_and_requests_have_it(shop, events):
    release = load_release(current_release(shop))
    numeric = release.codec.numeric
    assert [name for name in numeric if name in NAMES] == NAMES
    engine = Engine(release, shop)
    try:
        user = events[c.USER].iloc[0]
        before = engine.snapshot.online.user(user, time.time()).columns
        now = time.time()
        engine.accept([
            {"event_id": "bought-now", "user_id": user, "item_id": release.codec.items.values[0],
             "type": "purchase", "timestamp": now, "value": 12.5}
        ])  # fmt: skip
        after = engine.snapshot.online.user(user, time.time()).columns
        assert after["spend_1h"][0] == pytest.approx((before["spend_1h"][0] or 0) + 12.5)
        assert after["bought_7d"][0] == (before["bought_7d"][0] or 0) + 1
        later = engine.snapshot.online.user(user, now + 3_700).columns
        assert later["spend_1h"] == [0.0]
        answer = engine.recommend(RecommendationRequest(user_id=user, k=5))
        assert len(answer["items"]) == 5 and not answer["degraded"]
        rows = release.reader.read(after, np.array([time.time()])).rows.numeric[0]
        values = dict(zip(release.codec.user_numeric, rows.tolist(), strict=True))
        assert values["spend_1h"] == pytest.approx(after["spend_1h"][0])
        unknown = engine.recommend(RecommendationRequest(user_id="nobody", k=5))
        assert len(unknown["items"]) == 5
    finally:
        engine.close()


def test_the_stream_goes_on_from_the_table(shop, events):
    engine = Engine(load_release(current_release(shop)), shop)
    try:
        with streaming(shop) as wait_until_drained:
            user = events[c.USER].iloc[5]
            online = engine.snapshot.online
            before = online.user(user, time.time()).columns
            now = time.time()
            engine.accept([
                {"event_id": f"s{n}", "user_id": user, "item_id": "i0001", "type": kind,
                 "timestamp": now - n, "value": 3.0}
                for n, kind in enumerate(["purchase", "view", "purchase"])
            ])  # fmt: skip
            overlaid = online.user(user, time.time())
            wait_until_drained()
            streamed = online.user(user, time.time())
        assert streamed.row_position == streamed.position != overlaid.row_position
        for features in (overlaid, streamed):
            assert features.columns["spend_1h"][0] == (before["spend_1h"][0] or 0) + 6.0
            assert features.columns["bought_7d"][0] == (before["bought_7d"][0] or 0) + 2
        joined = (
            feature_store(shop)
            .get_historical_features(
                entity_df=pd.DataFrame({c.USER: [user], c.EVENT_TIMESTAMP: [datetime.now(UTC)]}),
                features=[f"spend:{name}" for name in NAMES],
            )
            .to_df()
        )
        assert joined["spend_1h"][0] == streamed.columns["spend_1h"][0]
    finally:
        engine.close()
