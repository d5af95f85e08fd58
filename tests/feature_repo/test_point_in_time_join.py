"""Feast's historical join.

DuckDB and Spark agree on every row, with brute force, and with the online store.
"""

import warnings

import numpy as np
import pandas as pd
import pytest
from feast import FeatureStore
from feast.repo_config import RepoConfig

from feature_repo import columns as c
from feature_repo.declarations.built_in import SNAPSHOT_TTL
from feature_repo.declarations.feast_objects import build
from feature_repo.stores.feature_store import apply, feature_store
from pipelines.features.point_in_time import PointInTime
from pipelines.features.spark import spark_session
from pipelines.ingest.ingested import read_events

REFERENCES = [
    "user_profile:country",
    "user_activity:events_7d",
    "user_activity:view_items_30d",
    "user_activity:value_mean_all",
    "user_activity:last_event_at",
    "user_affinity:category_names",
    "user_affinity:category_shares",
    "user_history:history_item_ids",
    "user_history:history_timestamps",
    "user_seen:seen_view",
    "item_profile:genre",
    "item_profile:price",
    "item_activity:events_30d",
    "item_activity:like_users_all",
    "item_activity:trend",
]


def entity_rows(workspace, rows=600):
    events = read_events(workspace, [c.USER, c.ITEM])
    sample = events.iloc[np.linspace(0, len(events) - 1, rows).astype(int)]
    frame = sample[[c.USER, c.ITEM]].reset_index(drop=True)
    moved = np.random.default_rng(1).integers(-40 * 86_400, 40 * 86_400, rows)
    frame["event_timestamp"] = sample[c.TIMESTAMP].reset_index(drop=True) + pd.to_timedelta(
        moved, unit="s"
    )
    frame.loc[:4, c.USER] = "nobody"
    frame.loc[5:8, "event_timestamp"] += SNAPSHOT_TTL + pd.Timedelta(days=200)
    frame["row"] = np.arange(rows)
    return frame


def values(frame):
    plain = frame.sort_values("row", ignore_index=True)[[r.split(":")[1] for r in REFERENCES]]
    # repr compares floats by every bit and takes a missing value for equal to another.
    return plain.map(
        lambda v: (
            repr(list(v)) if isinstance(v, (list, np.ndarray)) else repr(v if v == v else None)
        )
    )


@pytest.fixture(scope="module")
def duckdb_rows(built):
    entities = entity_rows(built.workspace)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = (
            feature_store(built.workspace)
            .get_historical_features(entity_df=entities, features=REFERENCES)
            .to_df()
        )
    return entities, found


@pytest.fixture(scope="module")
def spark_store(built, tmp_path_factory):
    """The same views in Feast's Spark store, on a local master."""
    folder = tmp_path_factory.mktemp("spark")
    config = RepoConfig(
        project="funnel",
        provider="local",
        registry=str(folder / "registry.db"),
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        offline_store={"type": "spark", "spark_conf": {"spark.sql.session.timeZone": "UTC"}},
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    session = spark_session("point-in-time", work=folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = FeatureStore(config=config)
        store.apply(build(built.workspace.spec(), built.workspace.features.resolve(), "cluster"))
        yield store
    session.stop()


@pytest.mark.faults  # Spark joins by Feast's own plan
def test_spark_gives_the_same_rows_for_a_frame_and_for_sql(
    built, duckdb_rows, spark_store, tmp_path
):
    entities, fast = duckdb_rows
    micros = entities.astype({"event_timestamp": "datetime64[us, UTC]"})  # Spark reads no others
    micros.to_parquet(tmp_path / "entities.parquet")
    by_sql = feature_store(built.workspace).get_historical_features(
        entity_df=f"SELECT * FROM '{tmp_path}/entities.parquet' WHERE row >= 0;",
        features=REFERENCES,
    )
    slow = spark_store.get_historical_features(
        entity_df=f"SELECT * FROM parquet.`{tmp_path}/entities.parquet` WHERE row >= 0",
        features=REFERENCES,
    ).to_df()
    left, by_sql, right = values(fast), values(by_sql.to_df()), values(slow)
    assert len(left) == len(right) == len(entities)
    pd.testing.assert_frame_equal(left, by_sql)
    for column in left:
        pairs = zip(left[column], right[column], strict=True)
        assert [p for p in pairs if p[0] != p[1]] == [], column


@pytest.mark.faults
def test_spark_gives_the_same_rows_for_a_period_without_entities(built, spark_store):
    end = read_events(built.workspace, [c.USER])[c.TIMESTAMP].max()
    names = ["user_activity:events_7d", "user_activity:value_mean_all", "item_activity:trend"]
    period = {"start_date": end - pd.Timedelta(days=2), "end_date": end, "features": names}
    fast = feature_store(built.workspace).get_historical_features(**period).to_df()
    slow = spark_store.get_historical_features(**period).to_df()
    columns = [c.USER, c.ITEM, *(name.split(":")[1] for name in names)]

    def rows(frame):
        frame = frame.sort_values([c.USER, c.ITEM], ignore_index=True)
        return frame[columns].map(lambda value: repr(value if value == value else None))

    assert len(fast) > 100 and fast[c.USER].isna().any() and fast[c.ITEM].isna().any()
    assert (fast["event_timestamp"] == end.tz_convert("UTC")).all()
    pd.testing.assert_frame_equal(rows(fast), rows(slow))


def test_brute_force_gives_the_same_rows(built, duckdb_rows):
    entities, found = duckdb_rows
    found = found.sort_values("row", ignore_index=True)
    table = pd.read_parquet(built.workspace.features / "user_activity")
    by_user = dict(list(table.groupby(c.USER)))
    for row, entity in entities.iterrows():
        at = entity["event_timestamp"]
        known = by_user.get(entity[c.USER], table.iloc[:0])
        known = known[
            (known["event_timestamp"] <= at) & (known["event_timestamp"] >= at - SNAPSHOT_TTL)
        ]
        if known.empty:
            assert pd.isna(found.loc[row, "events_7d"])
        else:
            newest = known.loc[known["event_timestamp"].idxmax()]
            assert found.loc[row, "events_7d"] == newest["events_7d"]
            assert found.loc[row, "last_event_at"] == newest["last_event_at"]


def test_rows_keep_their_order_and_none_is_dropped(duckdb_rows):
    entities, found = duckdb_rows
    assert found["row"].tolist() == entities["row"].tolist()
    assert found.loc[:4, "events_7d"].isna().all()


def test_offline_features_equal_online_features(built):
    store = feature_store(built.workspace)
    users = read_events(built.workspace, [c.USER])[c.USER].unique()[:60]
    names = [r for r in REFERENCES if r.startswith("user_")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        online = store.get_online_features(
            features=names, entity_rows=[{c.USER: u} for u in users]
        ).to_dict()
        now = pd.DataFrame({c.USER: users, "event_timestamp": pd.Timestamp.now(tz="UTC")})
        offline = store.get_historical_features(entity_df=now, features=names).to_df()
    for name in (r.split(":")[1] for r in names):
        for left, right in zip(online[name], offline[name], strict=True):
            if isinstance(right, np.ndarray):
                assert list(left) == list(right), name
            elif right is None or right != right:
                assert left is None, name
            else:
                assert left == pytest.approx(right, abs=0), name


def test_the_ranking_service_with_its_request_time_features(built):
    store = feature_store(built.workspace)
    entities = entity_rows(built.workspace, 40).drop(columns="row")
    entities[c.REQUEST_TIME] = (
        entities["event_timestamp"].astype("datetime64[us, UTC]").astype("int64")
    ) // 1_000_000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = store.get_historical_features(
            entity_df=entities,
            features=store.get_feature_service("ranking_v1"),
            full_feature_names=True,
        ).to_df()
    assert len(found) == len(entities)
    at, last = found[c.REQUEST_TIME], found["user_activity__last_event_at"]
    recency = found["request_time__user_recency_days"].astype("float64")
    pd.testing.assert_series_equal(
        recency, (at - last) / 86_400, check_names=False, check_exact=True
    )
    assert (
        found["request_time__hour_of_day"] == entities["event_timestamp"].dt.hour.to_numpy()
    ).all()
    assert {"user_activity__events_7d", "item_activity__events_7d"} <= set(found.columns)


def test_training_sets_are_the_same_in_the_cluster_profile(built, copied, monkeypatch):
    events = read_events(built.workspace, [c.USER]).iloc[::150]
    at = events[c.TIMESTAMP].astype("int64").to_numpy() / 1e6

    def read(workspace):
        rows = PointInTime(workspace).users("user_tower_v1", events[c.USER].to_numpy(), at)
        return [columns for _, columns in rows]

    expected = read(built.workspace)
    monkeypatch.setenv("FUNNEL_PROFILE", "cluster")
    monkeypatch.setenv(
        "FUNNEL_REDIS", "localhost:1"
    )  # not called: historical reads need no online store
    monkeypatch.setenv("FUNNEL_SPARK_MASTER", "local[2]")
    session = spark_session("training-sets", work=copied.root)
    apply(feature_store(copied), copied)
    found = read(copied)
    session.stop()
    assert len(expected) == len(found)
    for left, right in zip(expected, found, strict=True):
        assert left.keys() == right.keys()
        for name in left.keys() - {"event_timestamp"}:
            assert left[name] == right[name], name
