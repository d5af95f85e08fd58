"""Feast's historical reads as Feast documents them, on the tiny world with the example's features.

``test_point_in_time_join.py`` holds them to Feast's Spark store.
"""

import shutil
import warnings
from datetime import UTC, datetime, timedelta

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource
from feast.data_format import ParquetFormat
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.repo_config import RepoConfig
from feast.types import Float64, String

from feature_repo import columns as c
from feature_repo.stores.feature_store import feature_store
from pipelines.workflow.stages import run_materialize
from tests.support.tiny_world import tiny_world

OWN = """
dashboard = FeatureService(
    name="dashboard",
    features=[spend, defaults["user_activity"][["events_7d"]], bought[["last_paid"]], dear, margins,
              "item_profile:price"],
    tags={"team": "bi"},
    description="What the dashboard shows",
)
"""
DECLARED = ["spend:spend_1h", "spend:dearest", "spend:bought_7d", "bought:paid_7d"]
FEATURES = [*DECLARED, "user_activity:events_7d", "margins:margin", "dear:price_ratio"]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def shop(copy, tmp_path_factory):
    """The tiny world in Redis, with a service of a dashboard."""
    folder = tmp_path_factory.mktemp("historical")
    with copy(tiny_world(), folder / "w") as workspace:
        declared = workspace.declarations
        (folder / "features.py").write_text(declared.read_text() + OWN)
        shutil.copy(declared.with_name("margins.parquet"), folder)
        spec = workspace.spec().model_copy(update={"features": str(folder / "features.py")})
        (workspace.ingest / "dataset.json").write_text(spec.model_dump_json())
        run_materialize(workspace)
        yield workspace


@pytest.fixture(scope="module")
def store(shop):
    return feature_store(shop)


def sql(shop, limit=400):
    """Return SQL of the times of some purchases, in which the windows' values are not all zero."""
    return (
        "SELECT user_id, item_id, timestamp AS event_timestamp, 'deals' AS page "
        f"FROM read_parquet('{shop.ingest}/events/**/*.parquet') "
        f"WHERE type = 'purchase' ORDER BY timestamp, event_id LIMIT {limit} -- the first"
    )


def test_sql_gives_the_rows_of_the_same_data_frame(shop, store):
    with duckdb.connect() as database:
        frame = database.execute("SET TimeZone = 'UTC'").execute(sql(shop)).df()
    by_frame = store.get_historical_features(frame, FEATURES, full_feature_names=True).to_df()
    by_sql = store.get_historical_features(sql(shop), FEATURES, full_feature_names=True)
    pd.testing.assert_frame_equal(by_sql.to_df(), by_frame)
    pd.testing.assert_frame_equal(by_sql.to_arrow().to_pandas(), by_frame)
    assert len(by_frame) > 50
    for name in FEATURES:
        assert by_frame[name.replace(":", "__")].fillna(0).astype(bool).sum() > 5, name


def test_a_read_without_entities_has_a_row_for_each_key_of_the_period(shop, store):
    end = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    features = ["spend:spend_1h", "user_activity:events_7d", "margins:margin"]
    period = {"start_date": end - timedelta(days=8), "end_date": end}
    found = store.get_historical_features(features=features, **period).to_df()

    def within(path, time, key):
        table = pd.read_parquet(path)
        return set(table.loc[table[time].between(*period.values()), key])

    users = within(shop.features / "user_activity", c.EVENT_TIMESTAMP, c.USER)
    users |= within(shop.features / "spend", c.EVENT_TIMESTAMP, c.USER)
    items = within(shop.declarations.with_name("margins.parquet"), "known_from", c.ITEM)
    assert len(users) > 20 and len(items) == 70
    assert set(found[c.USER].dropna()) == users and set(found[c.ITEM].dropna()) == items
    assert len(found) == len(users) + len(items)
    again = store.get_historical_features(found[[c.USER, c.ITEM, c.EVENT_TIMESTAMP]], features)
    pd.testing.assert_frame_equal(found, again.to_df())

    longest = store.get_historical_features(features=["margins:margin"], end_date=end).to_df()
    assert len(longest) == 70  # no TTL: 30 days, so the rows of 7 days ago count, not of 100


def test_the_join_as_sql_gives_the_same_rows(shop, store):
    features = ["user_activity:events_7d", "item_profile:price"]
    job = store.get_historical_features(sql(shop), features)
    with duckdb.connect() as database:
        found = database.execute("SET TimeZone = 'UTC'").execute(job.to_sql()).to_arrow_table()
    assert found.equals(job.to_arrow())
    with pytest.raises(NotImplementedError, match="views with aggregations"):
        store.get_historical_features(sql(shop), DECLARED).to_sql()
    with pytest.raises(NotImplementedError, match="give them as SQL"):
        store.get_historical_features(
            job.to_df()[[c.USER, c.ITEM, "event_timestamp"]], features
        ).to_sql()


NOW = "now() AS event_timestamp"
BAD = {
    "no SQL": ("SELEC", "cannot run as SQL: Parser Error"),
    "two statements": (f"SELECT 'u' AS user_id, {NOW}; DROP TABLE x", "cannot run as SQL"),
    "no such file": (f"SELECT *, {NOW} FROM '/nowhere.parquet'", "No files found"),
    "no time": ("SELECT 'u' AS user_id", "a column named event_timestamp"),
    "text for a time": ("SELECT 'u' AS user_id, 'x' AS event_timestamp", "Conversion Error"),
    "no key": (f"SELECT 'i' AS item_id, {NOW}", "must contain columns"),
    "a number as an id": (f"SELECT 5 AS user_id, {NOW}", "'user_id' .* is int32; ids are text"),
    "neither": (5, "a pandas data frame or SQL, not int"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_entity_rows_are_refused_in_a_sentence(name, store):
    entities, message = BAD[name]
    with pytest.raises(Exception, match=message) as refused:
        store.get_historical_features(entities, ["user_activity:events_7d"])
    assert "\n" not in str(refused.value).strip()


def test_what_a_request_would_have_is_asked_for(shop, store):
    without = f"SELECT * EXCLUDE (page) FROM (\n{sql(shop)}\n)"
    with pytest.raises(Exception, match="page not found in the entity dataframe.* view dear"):
        store.get_historical_features(without, ["dear:price_ratio"])
    with pytest.raises(Exception, match="page not found in the entity dataframe.* view dear"):
        store.get_historical_features(features=["dear:price_ratio"], end_date=datetime.now(UTC))
    with pytest.raises(ValueError, match="is after end_date"):
        store.get_historical_features(
            features=["margins:margin"],
            start_date=datetime(2026, 2, 1, tzinfo=UTC),
            end_date=datetime(2026, 1, 1, tzinfo=UTC),
        )


def test_a_saved_dataset_is_read_back_as_it_was(shop, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [name.split(":")[1] for name in FEATURES]
    first = store.get_historical_features(sql(shop, 50), FEATURES)
    moved = "event_timestamp + INTERVAL 3 DAY AS event_timestamp"
    later = store.get_historical_features(
        f"SELECT * REPLACE ({moved}) FROM ({sql(shop)}\n)", FEATURES
    )
    for path in ("rows.parquet", "folder"):
        for job in (first, later):  # the later one has other times, and replaces all rows
            store.create_saved_dataset(
                job, path, SavedDatasetFileStorage(path), allow_overwrite=job is later
            )
            monkeypatch.chdir("/")  # a relative path is that of the folder in which it was saved
            found = feature_store(shop).get_saved_dataset(path).to_df()
            monkeypatch.chdir(tmp_path)
            columns = [c.USER, c.ITEM, "event_timestamp", *names]
            expected = job.to_df()[columns]
            found = found[columns].astype(expected.dtypes)
            pd.testing.assert_frame_equal(found, expected)
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        store.create_saved_dataset(first, "again", SavedDatasetFileStorage("rows.parquet"))
    nobody = f"SELECT * FROM ({sql(shop)}\n) WHERE user_id = 'nobody'"
    with pytest.raises(ValueError, match="no row to save"):
        store.get_historical_features(nobody, FEATURES).persist(SavedDatasetFileStorage("none"))
    with pytest.raises(ValueError, match="local Parquet files"):
        first.persist(SavedDatasetFileStorage("s3://bucket/rows.parquet"))


def test_a_service_of_ones_own_reads_the_same_online_and_historically(shop, store):
    service = store.get_feature_service("dashboard")
    assert service.tags == {"team": "bi"} and service.description == "What the dashboard shows"
    users = sorted(pd.read_parquet(shop.ingest / "users.parquet")[c.USER])[:40]
    rows = [
        {c.USER: user, c.ITEM: f"i{number + 1:04d}", "page": "deals"}
        for number, user in enumerate(users)
    ]
    online = store.get_online_features(service, rows).to_df()
    now = pd.DataFrame(rows).assign(event_timestamp=pd.Timestamp.now(tz="UTC"))
    offline = store.get_historical_features(now, service).to_df()
    names = ["spend_1h", "dearest", "bought_7d", "events_7d", "last_paid", "margin", "price"]
    for name in [*names, "price_ratio", "on_deals"]:
        left, right = (pd.to_numeric(frame[name]).to_numpy() for frame in (online, offline))
        pd.testing.assert_series_equal(pd.Series(left), pd.Series(right), check_dtype=False)
        assert pd.Series(right).notna().sum() > 5, name


def test_a_row_made_later_is_not_known_where_that_is_asked(tmp_path):
    """Feast's own DuckDB store gives the same rows."""
    day = datetime(2026, 1, 1, tzinfo=UTC)
    known = [day, day + timedelta(days=1), day + timedelta(days=1), day + timedelta(days=2)]
    made = [day, day + timedelta(days=1), day + timedelta(days=5), None]
    stamps = [pa.array(times, pa.timestamp("us", tz="UTC")) for times in (known, made)]
    table = {"item_id": ["a"] * 4, "known": stamps[0], "made": stamps[1], "x": [1.0, 2.0, 3.0, 4.0]}
    pq.write_table(pa.table(table), tmp_path / "table.parquet")
    entity = Entity(name="item", join_keys=["item_id"])
    view = FeatureView(
        name="table",
        entities=[entity],
        ttl=timedelta(days=6),
        schema=[Field(name="item_id", dtype=String), Field(name="x", dtype=Float64)],
        source=FileSource(
            path=str(tmp_path / "table.parquet"),
            timestamp_field="known",
            created_timestamp_column="made",
            file_format=ParquetFormat(),
        ),
    )
    entities = pd.DataFrame({
        "item_id": ["a"] * 6 + ["b"],
        "event_timestamp": [day + timedelta(days=days) for days in (-1, 0, 1, 3, 6, 20, 3)],
    })  # fmt: skip

    def read(kind, asked):
        store = FeatureStore(
            config=RepoConfig(
                project="p",
                provider="local",
                registry=str(tmp_path / f"{len(kind)}.db"),
                offline_store={"type": kind},
                entity_key_serialization_version=3,
            )
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            store.apply([entity, view])
        job = store.get_historical_features(
            entities, ["table:x"], filter_by_created_timestamp=asked
        )
        frame = job.to_df().sort_values(["item_id", "event_timestamp"])
        return [None if value != value else value for value in frame["x"]]

    ours = "feature_repo.stores.offline_store.AsofDuckDBOfflineStore"
    assert read(ours, True) == read("duckdb", True) == [None, 1, 2, 2, 3, None, None]
    assert read(ours, False)[:3] == [None, 1, 3]
