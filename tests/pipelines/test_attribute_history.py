"""Attributes with a history: past rows have those of their time, and the server the newest.

The expected values are looked up here in the rows that the test wrote, by no code of the product.
"""

import random
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec
from feature_repo.declarations.built_in import NEVER_STALE
from feature_repo.stores.embedded_redis import release as stop_redis
from feature_repo.stores.feature_store import feature_store
from pipelines.features.point_in_time import DAY_S, PointInTime
from pipelines.ingest.ingested import read_events
from pipelines.operations.skew import newest_impressions, skew
from pipelines.training.config import SampleConfig
from pipelines.training.past_requests import InteractionHistory, replay, requests_from
from pipelines.training.ranking_sets import RankingSets
from pipelines.training.split import Split
from pipelines.training.train_retrieval import fit_codec
from pipelines.workflow.stages import run_features, run_materialize
from serving.api.schemas import ItemUpdate, RecommendationRequest
from serving.counters import CounterFiles, CounterReader
from serving.engine import Engine
from serving.recommender.filters import AttributeRule, FilterRules, Filters, RequestRules
from serving.releases.release import load_release
from tests.support.ingest_folder import World, rows_of
from tests.support.small_world import silent
from tests.support.tiny_release import ITEMS, write_release

TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
NAMES = [f"i{number:02d}" for number in range(1, ITEMS + 1)]
UNLISTED = NAMES[-1]

SPEC = DatasetSpec.model_validate(
    {
        "name": "prices",
        "events": {"path": "events.csv", "user": "user", "item": "item", "timestamp": "time"},
        "users": {
            "path": "users.csv",
            "key": "user",
            "attributes": {"age": "numeric", "plan": "categorical"},
            "valid_from": "since",
        },
        "items": {
            "path": "items.csv",
            "key": "item",
            "attributes": {
                "price": "numeric", "brand": "categorical", "tags": "multi_categorical",
                "title": "text",
            },
            "title": "title",
            "category": "tags",
            "recommend_unlisted": True,
            "valid_from": "since",
        },
    }
)  # fmt: skip

CHANGED = TODAY - timedelta(days=3, hours=12)
EARLY = [TODAY - timedelta(days=days) for days in (200, 90, 30)]


def item_rows():
    """Return (id, time, price, brand, tags) of all items but one, in no order of time.

    Prices are below 100 until they change to more than 1,000; some are unknown, some later ones
    are of the future, and a quarter of the items is described a month ago for the first time.
    """
    rows = []
    for number, name in enumerate(NAMES[:-1], start=1):
        tag = f"t{number % 3}"
        kind = number % 4
        if kind == 1:
            rows.append((name, TODAY + timedelta(days=2), 5_000 + number, "later", [tag]))
        if kind == 2:
            rows.append((name, EARLY[0], number, "old", []))
        if kind == 3:
            rows.append((name, EARLY[2], number, "old", [tag]))
            continue
        price = None if kind == 0 else 1_000 + number
        rows.append((name, CHANGED, price, "new", [tag, "sale"]))
        rows.append((name, EARLY[1], number + 0.25, "old", [tag]))
    return rows


def user_rows():
    """Return (id, time, age, plan) of users; the last but one is not described yet."""
    users = [f"u{number:02d}" for number in range(28)]
    rows = [(user, EARLY[1], 20 + number, "free") for number, user in enumerate(users)]
    rows += [(user, CHANGED, 40 + number, "paid") for number, user in enumerate(users)]
    return [*rows, ("u28", TODAY + timedelta(days=1), 99, "paid")]


def as_of(rows, name, moment):
    """Return the newest row of an id that is not after a moment, without id and time."""
    known = [row for row in rows if row[0] == name and row[1] <= moment]
    return max(known, key=lambda row: row[1])[2:] if known else None


def item_lines(rows):
    return rows_of(
        *(
            ",".join([name, time.isoformat(), "" if price is None else str(price), brand,
                      "|".join(tags), f"Item {name}"])
            for name, time, price, brand, tags in rows
        ),
        header="item,since,price,brand,tags,title",
    )  # fmt: skip


def write_events(world):
    draw = random.Random(5)
    start = (TODAY - timedelta(days=60)).timestamp()
    lines = [
        f"u{draw.randrange(30):02d},{draw.choice(NAMES)},{start + draw.random() * 60 * DAY_S:.3f}"
        for _ in range(1_000)
    ]
    world.write("events.csv", rows_of(*lines, f"u00,{NAMES[0]},{start}"))


def run_stages(world):
    world.ingest(SPEC, now=pd.Timestamp.now(tz="UTC"))
    run_features(world.workspace)
    run_materialize(world.workspace)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    """Events of 60 days, with the histories of their items and users materialized."""
    world = World(tmp_path_factory.mktemp("prices"))
    write_events(world)
    world.write("items.csv", item_lines(item_rows()))
    users = [f"{name},{time.isoformat()},{age},{plan}" for name, time, age, plan in user_rows()]
    world.write("users.csv", rows_of(*users, header="user,since,age,plan"))
    run_stages(world)
    yield world
    stop_redis(world.workspace.redis)


@pytest.fixture(scope="module")
def release(world):
    """A release of untrained models with the codes and the catalogue that training would make."""
    workspace = world.workspace
    events = read_events(workspace)
    split = Split.by_time(events)
    catalogue = fit_codec(workspace, events, split, features=PointInTime(workspace))
    folder = workspace.releases / "made"
    write_release(folder, catalogue=catalogue)
    named = folder.with_name(load_release(folder).id)
    folder.rename(named)
    return load_release(named)


def at(day):
    return datetime.fromtimestamp(day * DAY_S, UTC)


def number(value):
    return np.nan if value is None else value


def test_past_requests_have_the_attributes_of_their_time(world, release):
    events = read_events(world.workspace)
    requests = requests_from(events, release.codec)[::12]
    codec = release.codec
    filters = Filters(FilterRules(), release.items)
    dear = RequestRules(5, filters={"price": AttributeRule(at_least=1_000.0)})
    sale = RequestRules(5, filters={"tags": AttributeRule(any_of=["sale"])})
    days = set()
    for rows, users, items in replay(
        requests,
        features=PointInTime(world.workspace),
        codec=codec,
        items=release.items,
        interactions=InteractionHistory(events, codec),
    ):
        day = int(requests.time[rows[0]] // DAY_S)
        days.add(day)
        of_item = [as_of(item_rows(), name, at(day)) or (None, None, []) for name in NAMES]
        prices = np.array([number(price) for price, _, _ in of_item])
        numeric = dict(zip(codec.all_item_numeric, items.rows.numeric[1:].T, strict=True))
        np.testing.assert_array_equal(numeric["item_price"], prices.astype(np.float32))
        codes = dict(zip(codec.all_item_categorical, items.rows.categorical[1:].T, strict=True))
        brands = codec.item_attributes.vocabularies["brand"]
        assert codes["item_brand"].tolist() == [brands.code(brand) for _, brand, _ in of_item]
        known = [[codec.categories.code(tag) for tag in tags] for _, _, tags in of_item]
        assert [[code for code in row if code] for row in items.categories[1:].tolist()] == known

        for rule, fits in ((dear, prices >= 1_000), (sale, ["sale" in t for _, _, t in of_item])):
            removed = filters.removals(items, rule, seen={}, time=at(day).timestamp())
            assert (~removed["attribute_rule"][1:]).tolist() == list(fits)
        for row, user in zip(rows, users.rows.numeric, strict=True):
            moment = datetime.fromtimestamp(requests.time[row], UTC) - timedelta(microseconds=1)
            age, _ = as_of(user_rows(), requests.user[row], moment) or (None, None)
            columns = dict(zip(codec.user_numeric, user, strict=True))
            np.testing.assert_equal(columns["age"], np.float32(number(age)))
    assert len(days) > 40
    # The release itself has the newest rows, for its towers and vocabularies.
    assert release.items.raw["price"][1] == 1_001


def test_rows_to_learn_from_have_last_months_prices(world, release):
    events = read_events(world.workspace)
    split = Split.by_time(events)
    sets = RankingSets(
        world.workspace, release.retrieval, events, split,
        sample=SampleConfig(train_requests=40, negatives=20), progress=silent,
    )  # fmt: skip
    column = release.codec.numeric.index("item_price")
    assert split.calibrate < CHANGED.timestamp() < split.test + 4 * DAY_S
    before = sets.train().numeric[:, column]
    assert np.nanmax(before) < 100 < 1_000 < np.nanmax(release.items.encoded.numbers)
    assert np.isfinite(before).mean() > 0.8
    after = sets.test(60).numeric[:, column]
    assert np.nanmin(after) < 100 and np.nanmax(after) > 1_000


def test_feasts_join_gives_the_row_of_each_time_and_the_batch_the_same(world, release):
    draw = random.Random(2)
    store = feature_store(world.workspace)
    for key, rows, names, view, extra in (
        (c.ITEM, item_rows(), ["price", "brand", "tags"], "item_profile", [UNLISTED]),
        (c.USER, user_rows(), ["age", "plan"], "user_profile", ["u29"]),
    ):
        moments = [
            time + timedelta(microseconds=shift) for _, time, *_ in rows for shift in (-1, 0)
        ]
        ids = [row[0] for row in rows for _ in range(2)]
        ids += [draw.choice([*ids, *extra]) for _ in range(200)]
        moments += [TODAY - timedelta(days=draw.random() * 210) for _ in range(200)]
        joined = store.get_historical_features(
            entity_df=pd.DataFrame({key: ids, c.EVENT_TIMESTAMP: moments}),
            features=[f"{view}:{name}" for name in names],
        ).to_arrow()
        found = zip(*(joined[name].to_pylist() for name in names), strict=True)
        for values, name, moment in zip(found, ids, moments, strict=True):
            expected = as_of(rows, name, moment) or [None] * len(names)
            assert [v or None for v in values] == [v or None for v in expected], (name, moment)

    days = np.array([TODAY.timestamp() // DAY_S - 40, TODAY.timestamp() // DAY_S], dtype=np.int64)
    for day, activity in PointInTime(world.workspace).item_activity(release.codec, days):
        (again,) = store.get_historical_features(
            entity_df=pd.DataFrame({c.ITEM: NAMES, c.EVENT_TIMESTAMP: at(day)}),
            features=["item_profile:price"],
        ).to_arrow().select(["price"]).itercolumns()  # fmt: skip
        batch = activity.attributes.raw["price"].take(np.arange(1, ITEMS + 1))
        assert batch.tolist() == again.to_pylist()


def test_the_online_store_has_the_newest_row_that_is_not_of_the_future(world):
    store = feature_store(world.workspace)
    read = store.get_online_features(
        features=["item_profile:price", "item_profile:brand"],
        entity_rows=[{c.ITEM: name} for name in NAMES],
    ).to_dict()
    now = datetime.now(UTC)
    expected = [as_of(item_rows(), name, now) or (None, None, []) for name in NAMES]
    assert read["price"] == [price for price, _, _ in expected]
    assert read["brand"] == [brand for _, brand, _ in expected]
    users = ["u00", "u28", "u29"]
    read = store.get_online_features(
        features=["user_profile:age"], entity_rows=[{c.USER: name} for name in users]
    ).to_dict()
    assert read["age"] == [40, None, None]


def test_a_row_of_the_future_comes_with_the_first_materialization_after_its_time(
    world, copy, tmp_path
):
    with copy(world.workspace, tmp_path / "w") as workspace:
        store = feature_store(workspace)
        now = datetime.now(UTC)
        for end, price in ((now, 1_001), (now + timedelta(days=3), 5_001)):
            store.materialize(now - NEVER_STALE, end, feature_views=["item_profile"])
            read = store.get_online_features(
                features=["item_profile:price"], entity_rows=[{c.ITEM: NAMES[0]}]
            ).to_dict()
            assert read["price"] == [price]


@pytest.mark.faults  # all stages once more
def test_a_changed_price_reaches_filter_score_and_answer_without_a_release(
    world, release, copy, tmp_path
):
    with copy(world.workspace, tmp_path / "work") as workspace:
        shutil.copytree(world.folder, tmp_path / "data")
        run_materialize(workspace)
        files = CounterFiles(tmp_path / "counters")
        reader = CounterReader(workspace, files)
        engine = Engine(release, workspace, counters=files)
        assert reader.step(release) and not reader.step(release)
        engine.refresh_items()
        first = scores(engine)
        assert sold_out(engine) == []

        # A later file has one row; ingest, features and materialize as every night.
        name = NAMES[2]  # 3 for a month
        rows = [(name, datetime.now(UTC), 777.7, "sold-out", ["t1", "t2", "sale"])]
        (tmp_path / "data" / "items.csv").write_text(item_lines(rows))
        run_stages(World(tmp_path, workspace=workspace))
        kept = pq.read_table(workspace.ingest / "items_history.parquet")
        assert len(kept) == len(item_rows()) + 1
        assert reader.step(release)
        engine.refresh_items()

        assert sold_out(engine) == [name]
        moved = {item: abs(score - first[item]) for item, score in scores(engine).items()}
        moved.pop(name)  # its score is the model's business, its row is checked below
        assert max(moved.values()) < 0.01  # by the seconds in between
        items, code = engine.items, release.codec.items.code(name)
        column = release.codec.all_item_numeric.index("item_price")
        assert items.rows.numeric[code, column] == np.float32(777.7)
        tags = [release.codec.categories.code(tag) for tag in ("t1", "t2", "sale")]
        assert items.categories[code].tolist() == tags

        added_items_keep_their_own(engine, column)
        engine.close()  # writes the impressions
        report = skew(workspace, newest_impressions(workspace, None, None), silent)
        assert report.requests == 4 and {"item_price", "item_brand"} <= set(report.features)
        assert (report.differing, report.row_missing) == (0, 0)


def sold_out(engine):
    """Return the items of an answer that is filtered by the new price and the new brand."""
    filters = {"price": {"min": 777.0, "max": 778.0}, "brand": {"in": ["sold-out"]}}
    request = RecommendationRequest(user_id="nobody", k=ITEMS, filters=filters)
    return [item["item_id"] for item in engine.recommend(request)["items"]]


def scores(engine):
    answer = engine.recommend(RecommendationRequest(user_id="nobody", k=ITEMS))
    return {item["item_id"]: item["score"] for item in answer["items"]}


def added_items_keep_their_own(engine, column):
    engine.add_item("added", ItemUpdate(attributes={"price": 3.5, "tags": ["t1", "sale"]}))
    items = engine.items
    last = len(items) - 1
    assert items.rows.numeric[last, column] == np.float32(3.5)
    assert items.raw["price"][last] == 3.5
    assert items.raw["tags"].having("sale")[-1] == last
    assert items.categories[last].any() and items.raw["price"][3] == 777.7
    filters = {"price": {"min": 3.4, "max": 3.6}}
    request = RecommendationRequest(user_id="nobody", k=ITEMS, filters=filters)
    assert [item["item_id"] for item in engine.recommend(request)["items"]] == ["added"]
