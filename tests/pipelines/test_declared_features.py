"""A feature declared once: from a ``features.py`` to table, training row, request and stream.

The values are counted here from the events, by no code of the product.
"""

import itertools
import json
import random
import re
import shutil
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore, FeatureView

from feature_repo import columns as c
from feature_repo.declarations.checks import ENTITIES
from feature_repo.declarations.reading import read_declared
from feature_repo.encoding import Vocabulary
from feature_repo.erased import ErasedUsers
from feature_repo.events.context import BadContext
from feature_repo.files import read_json
from feature_repo.on_demand.function import FunctionText
from feature_repo.stores.feature_store import feature_store
from pipelines.features.point_in_time import PointInTime
from pipelines.features.whole_tables import list_files
from pipelines.ingest.ingested import read_events
from pipelines.operations.recount import check
from pipelines.operations.skew import newest_impressions, skew
from pipelines.streaming.offline import read_archive
from pipelines.synthetic.generate import PAGES
from pipelines.training.config import RetrievalConfig
from pipelines.training.declared_features import fit_user_categories, fit_user_features
from pipelines.training.past_requests import InteractionHistory, replay, requests_from
from pipelines.training.release_pointer import current_release
from pipelines.training.split import Split
from pipelines.training.train_retrieval import examples, train_retrieval
from pipelines.workflow.stages import run_materialize
from serving.api.schemas import RecommendationRequest
from serving.counters import CounterFiles, CounterReader
from serving.engine import Engine
from serving.online.features import OnlineFeatures, no_features
from serving.recommender.codec import Category, Codec
from serving.recommender.deadline import Deadline
from serving.recommender.filters import RequestRules
from serving.recommender.hydrate import Hydrator
from serving.recommender.item_table import activity_from
from serving.recommender.users import UserReader
from serving.releases.item_files import load_items, save_items
from serving.releases.release import load_release, load_retrieval
from tests.support.streaming_job import streaming
from tests.support.tiny_world import TOWERS, margins, tiny_world, vector

NAMES = ["spend_1h", "dearest", "bought_7d"]


LOYALTY = """
loyalty = FeatureView(
    name="loyalty",
    entities=[user],
    ttl=timedelta(days=30),
    source=FileSource(
        path="loyalty.parquet", timestamp_field="known_from", created_timestamp_column="made"
    ),
)
"""
DAY = 86_400
NOW = int(time.time())


def loyalty():
    """Return points of users: yesterday's after last week's, old ones, none, and of the future.

    Of two rows of one time that counts which was made later.
    """
    rows = [
        ("u0001", 7, 11, 5), ("u0001", 7, 10, 9), ("u0001", 1, 20, 9), ("u0001", 1, 21, 5),
        ("u0002", 40, 30, 1), ("u0003", 2, None, 1), ("u0004", -3, 40, 1), (None, 1, 50, 1),
        ("u0004", None, 60, 1),
    ]  # fmt: skip
    users, days, points, made = zip(*rows, strict=True)
    micros = [None if day is None else (NOW - day * DAY) * 1_000_000 for day in days]
    stamps = pa.array(micros, pa.timestamp("us", tz="UTC"))
    return pa.table({
        "user_id": list(users), "known_from": stamps, "points": pa.array(points, pa.int64()),
        "made": pa.array(made, pa.int64()), "level": [point and f"l{point}" for point in points],
    })  # fmt: skip


@pytest.fixture(scope="module")
def shop(copy, tmp_path_factory):
    """The tiny world, trained with the example's ``features.py``; a table was declared since."""
    folder = tmp_path_factory.mktemp("shop")
    with copy(tiny_world(), folder / "w") as workspace:
        declared = workspace.declarations
        (folder / "features.py").write_text(declared.read_text() + LOYALTY)
        shutil.copy(declared.with_name("margins.parquet"), folder)
        spec = workspace.spec().model_copy(update={"features": str(folder / "features.py")})
        (workspace.ingest / "dataset.json").write_text(spec.model_dump_json())
        pq.write_table(loyalty(), folder / "loyalty.parquet")
        run_materialize(workspace)
        yield workspace


@pytest.fixture
def events(shop):
    """What the features include: the ingested events, and those that a test had streamed."""
    names = [c.EVENT_ID, c.USER, c.ITEM, c.TYPE, c.TIMESTAMP, c.VALUE]
    tables = [pd.read_parquet(shop.ingest / "events"), read_archive(shop).to_pandas()]
    table = pd.concat([table[names] for table in tables if len(table)], ignore_index=True)
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
        "dearest": past[c.VALUE].max() if len(past) else None,
        "bought_7d": len(within(7 * 86_400)),
    }


def agree(found, expected):
    for name in NAMES:
        want = expected[name]
        assert found[name] == pytest.approx(want, abs=1e-6) if want else not found[name], name


def test_training_rows_have_the_values_of_their_time(shop, events):
    rng = random.Random(1)
    # From its acceptance on an event is known: streamed ones were accepted now.
    before = events["micros"] < (NOW - 3 * DAY) * 10**6
    rows = events[(events[c.TYPE] == "purchase") & before].sample(60, random_state=1)
    users = rows[c.USER].tolist()
    micros = [moment + rng.choice([-1, 0, 60, 3_000, 90_000]) * 10**6 for moment in rows["micros"]]
    joined = joined_at(shop, users, micros)
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


def test_a_table_of_ones_own_is_joined_and_read_online_within_its_ttl(shop, engine):
    expected = {"u0001": 20, "u0002": None, "u0003": None, "u0004": None}
    for user, points in expected.items():
        found = engine.snapshot.online.user(user, NOW)
        assert found.columns["points"] == [points]
        assert ("loyalty" in found.stale) == (user == "u0002")
    times = [(NOW - days * DAY) * 10**6 for days in (8, 5, 0, 20, 0)]
    users = ["u0001", "u0001", "u0001", "u0002", "u0002"]
    joined = joined_at(shop, users, times, ["loyalty:points"])["points"]
    assert [None if value != value else value for value in joined] == [None, 10, 20, 30, None]
    codec = replace(engine.release.codec, declared_user=(("loyalty", "points"),))
    row = engine.snapshot.online.user("u0001", NOW).columns
    numeric = UserReader(codec).read(row, np.array([float(NOW)])).rows.numeric[0]
    assert dict(zip(codec.user_numeric, numeric, strict=True))["points"] == 20


def test_text_of_a_table_is_a_category_of_the_ranker(shop, events):
    file = shop.declarations
    named = (
        file.read_text()
        + "ranking = FeatureService(name='ranking', "
        + "features=[*defaults.ranking, loyalty[['level']]])\n"
    )
    text = Path(str(file) + ".text.py")
    text.write_text(named)
    declared = read_declared(text, shop.spec(), shop.features)
    assert declared.ranking_categorical(c.USER) == (("loyalty", "level"),)
    sample = events.assign(**{c.TIMESTAMP: pd.Timestamp(NOW, unit="s", tz="UTC")})
    (level,) = fit_user_categories(declared, PointInTime(shop), sample)
    assert level.values.values == ["l20"]  # of the user whose row is newest and in time

    codec = replace(load_release(current_release(shop)).codec, user_categories=(level,))
    codec = Codec.from_dict(json.loads(json.dumps(codec.to_dict())))
    assert list(codec.categorical)[-1 - len(codec.all_item_categorical)] == "user_level"
    rows = no_features("u0001", codec) | {"level": ["l20"]}
    found = UserReader(codec).read(rows, np.array([float(NOW)])).rows.categorical[0]
    assert len(found) == len(codec.all_user_categorical)
    assert found[-1] == level.values.code("l20") > 0
    found = UserReader(codec).read(no_features("u0001", codec), np.array([float(NOW)]))
    assert found.rows.categorical[0, -1] == 0


TOWER = """
@on_demand_feature_view(sources=[spend[["bought_7d"]], visit],
    schema=[Field(name="bought_on_deals", dtype=Float64)])
def eager(inputs: pd.DataFrame) -> pd.DataFrame:
    on_deals = (inputs["page"] == "deals").astype(float)
    return pd.DataFrame({"bought_on_deals": inputs["bought_7d"] * on_deals})

user_tower = FeatureService(name="user_tower", features=[*defaults.user_tower, eager])
"""


def test_the_user_tower_reads_the_context_of_past_and_of_present_requests(shop, engine):
    text = Path(str(shop.declarations) + ".tower.py")
    text.write_text(shop.declarations.read_text() + TOWER)
    spec = shop.spec()
    declared = read_declared(text, spec, shop.features)
    log = read_events(shop)
    log = log[log[c.POSITIVE]].tail(300)
    fitted = fit_user_features(declared, PointInTime(shop), log, spec.context)
    (feature,) = fitted
    assert (feature.view, feature.name) == ("eager", "bought_on_deals") and feature.spread > 0
    codec = replace(
        engine.release.codec, user_tower=fitted, tower_views=declared.tower_views, declared_user=()
    )
    codec = Codec.from_dict(json.loads(json.dumps(codec.to_dict())))
    assert ("spend", "bought_7d") in codec.user_reads

    # In training: of past events, from their columns and the user's features then.
    found = examples(codec, PointInTime(shop), log).context.numbers[:, -1]
    users, micros = log[c.USER].tolist(), log[c.TIMESTAMP].astype("datetime64[us, UTC]")
    joined = joined_at(shop, users, micros.astype("int64") - 1)["bought_7d"].to_numpy()
    numbers = np.asarray(joined, dtype=np.float64) * log["page"].eq("deals").to_numpy()
    expected = (np.log1p(numbers) - feature.mean) / feature.spread
    assert len(set(found.tolist())) > 2
    np.testing.assert_allclose(found, np.nan_to_num(np.clip(expected, -5, 5)), atol=1e-5)

    # In a request: from its context. A function that fails leaves the feature missing, and says so.
    row = no_features("u0001", codec) | {"bought_7d": [3], "page": ["deals"]}
    at = np.array([float(NOW)])
    batch = UserReader(codec).read(row, at)
    other = UserReader(codec).read(row | {"page": ["home"]}, at)
    assert batch.context.numbers[0, -1] > other.context.numbers[0, -1] and batch.missing == ()
    (view,) = codec.tower_views
    broken = replace(view, function=FunctionText("f", "def f(inputs):\n    raise OSError\n", ()))
    batch = UserReader(replace(codec, tower_views=(broken,))).read(row, at)
    assert batch.missing == ("bought_on_deals",) and batch.context.numbers[0, -1] == 0.0


def test_text_of_items_is_a_category_of_the_ranker(engine, tmp_path):
    spec = engine.release.codec.spec
    category = Category("margins", "supplier", Vocabulary(["acme", "zeta"]))
    codec = replace(engine.release.codec, item_categories=(category,))
    size = len(codec.items)
    columns = {name: [None] * size for name in codec.item_activity}
    columns |= {c.FIRST_EVENT_AT: [None] * size, c.LAST_EVENT_AT: [None] * size}
    columns["supplier"] = [None, "zeta", "acme", "other", *[None] * (size - 4)]
    activity = activity_from(columns, codec)
    table = replace(engine.release.items, codec=codec, activity=activity)
    assert table.rows.categorical[:5, -1].tolist() == [0, 2, 1, 0, 0]
    assert table.rows.categorical.shape[1] == len(codec.all_item_categorical)
    assert table.activity.head(size + 2).categories[-2:].tolist() == [[0], [0]]

    save_items(table, tmp_path)
    loaded = load_items(tmp_path, codec).head(size)
    np.testing.assert_array_equal(loaded.rows.categorical, table.rows.categorical)
    release = replace(engine.release, retrieval=replace(engine.release.retrieval, codec=codec))
    files = CounterFiles(tmp_path / "counters")
    files.publish(release, activity, "2026-01-01T00:00:00")
    mapped, _ = files.newest(release)
    np.testing.assert_array_equal(mapped.head(size).categories, activity.categories)
    assert spec == codec.spec


def test_a_table_of_ones_own_does_not_bring_an_erased_user_back(shop, copy, tmp_path):
    with copy(shop, tmp_path / "w") as workspace:
        ErasedUsers(workspace).add("u0001")
        run_materialize(workspace)
        release = load_release(current_release(workspace))
        online = OnlineFeatures(workspace, release.items)
        assert online.user("u0001", NOW).known is False
        assert online.user("u0002", NOW).known is True


def test_items_have_the_newest_row_of_their_table_that_is_known(shop, engine):
    """A week ago 7 less than their number; the next is not known yet; the last have none."""
    codec = engine.release.codec
    assert codec.all_item_numeric.index("item_margin") < len(codec.item_activity)
    assert "item_margin" in codec.numeric
    now = time.time()
    served = engine.snapshot.online.item_activity(now)
    then = dict(PointInTime(shop).item_activity(codec, np.array([now // DAY - 30], dtype=np.int64)))
    (past,) = then.values()
    trained = engine.release.items
    column = codec.item_activity.index("margin")
    for code, name in enumerate(codec.items.values, start=1):
        number = int(name[1:])
        known = number <= 70
        for values, days in ((served, -7), (trained.activity, -7), (past, -100)):
            found = values.counts[code, column]
            assert found == pytest.approx(number / 100 + days) if known else np.isnan(found), name


def test_a_view_that_was_registered_as_another_kind_is_registered_anew(shop, copy, tmp_path):
    """As of the version whose daily aggregates were plain views."""
    with copy(shop, tmp_path / "w") as workspace:
        store = feature_store(workspace)
        now = store.get_stream_feature_view("user_activity")
        store.registry.delete_feature_view(now.name, store.project)
        store.apply(
            [FeatureView(name=now.name, entities=[ENTITIES["user"]], source=now.batch_source)]
        )
        run_materialize(workspace)
        store.refresh_registry()
        assert store.get_stream_feature_view(now.name).aggregations == now.aggregations
        assert now.name not in {view.name for view in store.list_feature_views()}


def test_a_changed_row_reaches_filter_and_score_without_a_new_release(shop, copy, tmp_path):
    with copy(shop, tmp_path / "w") as workspace:
        own = tmp_path / "own"
        shutil.copytree(workspace.declarations.parent, own, ignore=lambda *_: ["w"])
        spec = workspace.spec().model_copy(update={"features": str(own / "features.py")})
        (workspace.ingest / "dataset.json").write_text(spec.model_dump_json())
        run_materialize(workspace)
        files = CounterFiles(tmp_path / "counters")
        release = load_release(current_release(workspace))
        reader = CounterReader(workspace, files)
        engine = Engine(release, workspace, counters=files, log_impressions=False)
        request = RecommendationRequest(
            user_id="u0001", k=80, filters={"margin": {"min": 777.7}}, explain=True
        )
        assert reader.step(release) and not reader.step(release)
        engine.refresh_items()
        assert engine.recommend(request)["items"] == []

        # The owner of the table adds a row, and materializes.
        table = pq.read_table(own / "margins.parquet").to_pylist()
        table.append({"item_id": "i0009", "known_from": datetime.now(UTC), "margin": 777.7})
        pq.write_table(pa.Table.from_pylist(table, margins().schema), own / "margins.parquet")
        run_materialize(workspace)
        assert reader.step(release)
        engine.refresh_items()
        (found,) = engine.recommend(request)["items"]
        assert found["item_id"] == "i0009"
        rows = engine.items.rows.numeric[engine.release.codec.items.code("i0009")]
        column = engine.release.codec.all_item_numeric.index("item_margin")
        assert rows[column] == np.float32(777.7)
        engine.close()


def test_vectors_of_items_give_cosines_with_the_newest_items_of_the_history(engine, events):
    def unit(number):
        given = vector(number, -7)
        if number > 70 or given is None or len(given) != 3 or not any(given):
            return None
        return np.array(given) / np.linalg.norm(given)

    user = events[c.USER].mode().iloc[0]
    columns, codes = ranked(engine, user, None)
    names = engine.release.codec.items.values
    history = [int(name[1:]) for name in reversed(columns[c.HISTORY_ITEMS][0][-10:])]
    recent = [unit(number) for number in history if unit(number) is not None]
    assert len(recent) > 5
    found = np.stack([columns[name] for name in c.similarities("title_vector")], axis=1)
    missing = 0
    for row, code in enumerate(codes.tolist()):
        mine = unit(int(names[code - 1][1:]))
        if mine is None:
            missing += 1
            assert np.isnan(found[row]).all()
            continue
        cosines = [mine @ other for other in recent]
        expected = [cosines[0], np.mean(cosines[:5]), max(cosines)]
        assert found[row] == pytest.approx(expected, abs=1e-6)
    assert missing >= 13  # those of 71 to 80, 5, 6 and 7


def test_aggregates_of_items_are_as_of_the_read(engine, events):
    codec = engine.release.codec
    now = time.time()
    served = engine.snapshot.online.item_activity(now).counts
    paid, last = (codec.item_activity.index(name) for name in ("paid_7d", "last_paid"))
    pane = 7 * DAY * 1_000_000 // 60
    purchases = events[events[c.TYPE] == "purchase"].sort_values(["micros", c.EVENT_ID])
    for code, item in enumerate(codec.items.values, start=1):
        mine = purchases[purchases[c.ITEM] == item]
        week = mine[mine["micros"] // pane > round(now * 1e6) // pane - 60]
        for values, column, expected in (
            (week[c.VALUE], paid, week[c.VALUE].mean()),
            (mine[c.VALUE], last, mine[c.VALUE].iloc[-1] if len(mine) else np.nan),
        ):
            found = served[code, column]
            assert found == pytest.approx(expected, rel=1e-6) if len(values) else np.isnan(found)
    assert np.isfinite(served[:, last]).sum() > 20


def test_a_release_is_served_when_its_views_are_declared_no_more(shop, copy, tmp_path):
    with copy(shop, tmp_path / "w") as workspace:
        spec = workspace.spec().model_copy(update={"features": None})
        (workspace.ingest / "dataset.json").write_text(spec.model_dump_json())
        for name in ("spend", "bought"):  # as 'funnel features' leaves it
            shutil.rmtree(workspace.features / name)
        list_files(workspace.features.resolve())
        run_materialize(workspace)
        request = RecommendationRequest(user_id="u0001", k=5)
        # Feast keeps what is not applied any more: the values are still in the online store.
        assert degraded(workspace, request) == []
        skew(workspace, newest_impressions(workspace, None, None), lambda *_: None)
        store = feature_store(workspace)
        store.delete_feature_view("spend")
        store.delete_feature_view("bought")
        store.delete_feature_view("margins")
        gone = [*NAMES, "paid_7d", "last_paid", "margin", "title_vector"]
        assert degraded(workspace, request) == [f"missing_{name}" for name in gone]


def degraded(workspace, request):
    engine = Engine(load_release(current_release(workspace)), workspace)
    try:
        answer = engine.recommend(request)
    finally:
        engine.close()
    assert len(answer["items"]) == request.k
    return answer["degraded"]


def bought(user, number, *, at, value, kind="purchase"):
    return {"event_id": f"{user}-{number}", "user_id": user, "item_id": "i0001", "type": kind,
            "timestamp": at, "value": value}  # fmt: skip


def with_event(events, event):
    """Return the events with an accepted one."""
    columns = {c.USER: event["user_id"], c.TYPE: event["type"], c.VALUE: event["value"]}
    row = pd.DataFrame([columns | {"micros": round(event["timestamp"] * 1e6)}])
    return pd.concat([events, row], ignore_index=True)


@pytest.fixture(scope="module")
def engine(shop):
    engine = Engine(load_release(current_release(shop)), shop)
    yield engine
    engine.close()


def test_the_ranker_has_a_column_of_each(engine):
    codec = engine.release.codec
    assert [name for name in codec.numeric if name in NAMES] == NAMES
    columns = {name: [n + 0.5] for n, name in enumerate(NAMES)}
    row = no_features("nobody", codec) | columns
    numeric = engine.release.reader.read(row, np.array([time.time()])).rows.numeric[0]
    values = dict(zip(codec.user_numeric, numeric.tolist(), strict=True))
    assert [values[name] for name in NAMES] == [0.5, 1.5, 2.5]


def test_the_towers_read_what_their_services_name(engine, events):
    codec = engine.release.codec
    assert [feature.name for feature in codec.user_tower] == NAMES
    assert [(f.name, f.size) for f in codec.item_tower] == [("margin", 1), ("title_vector", 3)]
    user = events[c.USER].mode().iloc[0]
    now = time.time()
    columns = engine.snapshot.online.user(user, now).columns
    reader, tower = engine.release.reader, engine.release.recommender.tower
    vectors = [
        tower(reader.context(columns | {"dearest": [dearest]}, np.array([now])))[0]
        for dearest in (None, 1.0, 300.0)
    ]
    assert np.abs(vectors[1] - vectors[2]).max() > 1e-4
    numbers = reader.context(columns | {"dearest": [None]}, np.array([now])).numbers[0]
    assert numbers[-2] == 0.0 and np.isfinite(numbers).all()

    # An item's vector is not that of another one which differs in declared features only.
    unknown = engine.items.encoded[1:3]
    given = codec.item_tower_numbers(unknown.numbers)
    raw = engine.release.retrieval.delta.tower(unknown.codes, given)
    given[:, -4:] = 1.0
    assert np.abs(engine.release.retrieval.delta.tower(unknown.codes, given) - raw).max() > 1e-4


def ranked(engine, user, page):
    """Return the ranker's columns of a user's candidates on a page, and their item codes."""
    now = time.time()
    columns = engine.snapshot.online.user(user, now).columns | {"page": [page]}
    batch = engine.release.reader.read(columns, np.array([now]))
    recommender = engine.release.recommender
    _, found, _ = recommender.recommend_ranked(batch, [RequestRules(5)], engine.items)
    assert found.pairs[0].missing == ()
    rows, _ = found.pairs[0].join(engine.items.rows)
    columns |= dict(zip(engine.release.codec.numeric, rows.T, strict=True))
    return columns, found.candidates.item


def test_a_feature_of_the_moment_is_computed_of_the_candidates_of_a_request(engine, events):
    user = events[events[c.TYPE] == "purchase"][c.USER].iloc[0]
    for page, on_deals in (("deals", 1.0), ("home", 0.0), (None, 0.0)):
        columns, codes = ranked(engine, user, page)
        ratio = columns["item_last_paid"] / np.float32(columns["dearest"][0])
        assert np.isfinite(ratio).sum() > 20
        np.testing.assert_allclose(columns["price_ratio"], ratio, rtol=1e-6)
        np.testing.assert_allclose(columns["on_deals"], ratio * on_deals, rtol=1e-6)

        # Feast's own read runs the same function.
        code = codes[np.isfinite(ratio)][0]
        row = {c.USER: user, c.ITEM: engine.release.codec.items.values[code - 1], "page": page}
        store = feature_store(engine.workspace)
        names = ["dear:price_ratio", "dear:on_deals", "bought:last_paid", "spend:dearest"]
        read = store.get_online_features(features=names, entity_rows=[row]).to_dict()
        expected = read["last_paid"][0] / read["dearest"][0]  # without events just accepted
        assert read["price_ratio"] == pytest.approx([expected], rel=1e-6)
        assert read["on_deals"] == pytest.approx([expected * on_deals], rel=1e-6)


def test_past_requests_have_the_context_of_their_events(shop):
    release = load_release(current_release(shop))
    events = read_events(shop).tail(300)
    requests = requests_from(events, release.codec)[100:200]
    found = []
    interactions = InteractionHistory(read_events(shop), release.codec)
    for rows, users, _ in replay(
        requests,
        features=PointInTime(shop),
        codec=release.codec,
        items=release.items,
        interactions=interactions,
    ):
        found += list(zip(rows, users.inputs["page"], strict=True))
    assert [page for _, page in sorted(found)] == events["page"].tolist()[100:200]
    assert {page for _, page in found} == set(PAGES)


def test_a_context_that_does_not_fit_is_refused(engine):
    for context, problem in (
        ({"pages": "home"}, "context.pages: there is no such field, only .'page'."),
        ({"page": 5}, "context.page: 5 is not text"),
    ):
        with pytest.raises(BadContext, match=problem):
            engine.recommend(RecommendationRequest(user_id="u0001", context=context))
        event = bought("u0001", "with-context", at=time.time(), value=1.0) | {"context": context}
        (refused,) = engine.accept([event]).rejected
        assert re.search(problem, refused.reason)


FAILING = {
    "raises": "raise OSError('away')",
    "another length": "return inputs[:1].assign(price_ratio=1.0, on_deals=1.0)",
    "another name": "return inputs",
    "not a number": "return inputs.assign(price_ratio=float('nan'), on_deals=float('nan'))",
    "infinite": "return inputs.assign(price_ratio=float('inf'), on_deals=-float('inf'))",
    "no such module": "import nothing_of_this_name",
}


@pytest.mark.parametrize("body", FAILING.values(), ids=FAILING)
def test_a_function_that_fails_costs_its_feature_and_not_the_answer(shop, body):
    engine = with_function(shop, f"def dear(inputs):\n    {body}\n")
    answer = engine.recommend(RecommendationRequest(user_id="u0001", k=5))
    engine.close()
    assert len(answer["items"]) == 5
    assert answer["degraded"] == ["missing_price_ratio", "missing_on_deals"]
    assert counted_as(engine, "missing_price_ratio") == 1


def test_a_function_that_makes_requests_late_pauses(shop):
    slow = (
        "import time\n    time.sleep(0.3)\n    return inputs.assign(price_ratio=1.0, on_deals=1.0)"
    )
    engine = with_function(shop, f"def dear(inputs):\n    {slow}\n")
    request = RecommendationRequest(user_id="u0001", k=5)
    answers = [engine.recommend(request, Deadline(0.15))["degraded"] for _ in range(3)]
    engine.close()
    assert answers == [["ranker_skipped"], *[["missing_price_ratio", "missing_on_deals"]] * 2]


def with_function(shop, text):
    """Return an engine whose release has another function; it reads items' last prices."""
    engine = Engine(load_release(current_release(shop)), shop, log_impressions=False)
    release = engine.release
    (view,) = release.codec.on_demand
    view = replace(view, inputs=view.inputs[1:2], function=FunctionText("dear", text))
    codec = replace(release.codec, on_demand=(view,))
    release.recommender.hydrator = Hydrator(release.recommender.vectors, codec)
    known = engine.items.activity.counts[:, codec.item_activity.index("last_paid")]
    assert np.isfinite(known).any()
    return engine


def counted_as(engine, word):
    value = engine.metrics.registry.get_sample_value("funnel_degraded_total", {"reason": word})
    return int(value or 0)


def test_an_accepted_event_counts_at_once_and_is_forgotten_in_time(engine, events):
    now = time.time()
    users = [*sorted(events[c.USER].unique()), "a-new-one"]
    accepted = [bought(user, 0, at=now, value=n + 0.25) for n, user in enumerate(users)]
    engine.accept(accepted)
    online = engine.snapshot.online
    for user, event in zip(users, accepted, strict=True):
        for asked in (now, now + 3_700, now + 8 * 86_400):
            found = online.user(user, asked).columns
            expected = counted(with_event(events, event), user, round(asked * 1e6))
            agree({name: found[name][0] for name in NAMES}, expected)
    answer = engine.recommend(RecommendationRequest(user_id="a-new-one", k=5))
    assert len(answer["items"]) == 5 and not answer["degraded"]


def test_the_stream_goes_on_from_the_table_and_nothing_skews(shop, events):
    engine = Engine(load_release(current_release(shop)), shop)
    users = [*sorted(events[c.USER].unique())[:20], "another-new-one"]
    now = time.time()
    sent = [
        bought(user, number, at=now - 60 * number, value=3.0, kind=kind)
        | {"context": {"page": " mail "}}
        for user in users
        for number, kind in enumerate(["purchase", "view", "purchase"], start=1)
    ]
    online = engine.snapshot.online
    pages = itertools.cycle(["deals", "home", None])
    ask = [
        RecommendationRequest(user_id=user, k=5, context={"page": page})
        for user, page in zip([*users, "nobody"], pages, strict=False)
    ]
    with streaming(shop) as wait_until_drained:
        for request in ask:
            engine.recommend(request)
        engine.accept(sent)
        for request in ask:
            engine.recommend(request)
        overlaid = {user: online.user(user, now) for user in users}
        wait_until_drained()
        streamed = {user: online.user(user, now) for user in users}
        for request in ask:
            engine.recommend(request)
    recount = check(shop, time.time())
    assert (recount.differing, recount.examples) == (0, [])
    for user in users:
        assert streamed[user].row_position == streamed[user].position
        for name in NAMES:
            assert streamed[user].columns[name] == overlaid[user].columns[name], (user, name)
        assert streamed[user].columns["spend_1h"][0] >= 6.0

    # The next ingest has their context.
    archive = read_archive(shop)
    names = [event["event_id"] for event in sent]
    mine = archive.filter(pc.is_in(archive[c.EVENT_ID], pa.array(names)))
    assert mine["context"].to_pylist() == ['{"page":"mail"}'] * len(sent)

    # The historical join has them, and forgets them later, though no row says so.
    joined = joined_at(shop, users, [time.time_ns() // 1_000] * len(users))
    for user, spent in zip(users, joined["spend_1h"], strict=True):
        assert spent == streamed[user].columns["spend_1h"][0]
    later = joined_at(shop, users, [(NOW + 2 * DAY) * 10**6] * len(users))
    assert set(later["spend_1h"]) == {0.0}
    assert list(later["dearest"]) == [streamed[user].columns["dearest"][0] for user in users]

    engine.close()  # writes the impressions
    report = skew(shop, newest_impressions(shop, None, None), lambda *_: None)
    assert report.requests >= 3 * len(ask)
    items = {"item_margin", "item_paid_7d", "item_last_paid"}
    assert {*NAMES, *items, "price_ratio", "on_deals", *c.similarities("title_vector")} <= set(
        report.features
    )
    assert (report.differing, report.row_missing) == (0, 0)


def joined_at(shop, users, micros, features=tuple(f"spend:{name}" for name in NAMES)):
    """Return the features of users as of times, by Feast's historical join."""
    times = pd.to_datetime(micros, unit="us", utc=True)
    return (
        feature_store(shop)
        .get_historical_features(
            entity_df=pd.DataFrame({c.USER: users, c.EVENT_TIMESTAMP: times}),
            features=list(features),
        )
        .to_df()
    )


@pytest.mark.faults  # another training
def test_another_column_of_the_ranker_leaves_the_towers_as_they_are(copy, tmp_path):
    with copy(tiny_world(), tmp_path / "w") as workspace:
        text = workspace.declarations.read_text().replace("spend, bought,", "spend,")
        shutil.copy(workspace.declarations.with_name("margins.parquet"), tmp_path)
        (tmp_path / "features.py").write_text(text)
        spec = workspace.spec().model_copy(update={"features": str(tmp_path / "features.py")})
        (workspace.ingest / "dataset.json").write_text(spec.model_dump_json())
        vectors = workspace.models / "retrieval" / "item_vectors.npy"
        before, columns = vectors.read_bytes(), load_retrieval(vectors.parent).codec.numeric

        epochs = []
        settings = RetrievalConfig(towers=TOWERS)
        split = Split.from_dict(read_json(workspace.models / "split.json"))
        train_retrieval(
            workspace,
            read_events(workspace),
            split,
            settings,
            log=lambda epoch, _: epochs.append(epoch),
            progress=lambda *_: None,
        )
        assert vectors.read_bytes() == before and not epochs
        left = load_retrieval(vectors.parent).codec.numeric
        assert sorted(set(columns) - set(left)) == ["item_paid_7d"]
