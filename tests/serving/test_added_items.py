"""Items that are added after a release.

Shown within a second by every server, by the release's own item tower.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch

from feature_repo.files import write_atomically
from feature_repo.stores.embedded_redis import release as stop_redis
from feature_repo.stores.feature_store import apply, feature_store
from feature_repo.workspace import Workspace
from retrieval.towers.examples import user_inputs
from retrieval.towers.export import export_item_tower
from serving.api.schemas import ItemUpdate, RecommendationRequest
from serving.counters import CounterFiles
from serving.engine import Engine
from serving.http.app import create_app
from serving.impressions import read_impressions
from serving.live_items.added import AddedItems
from serving.live_items.changes import ItemChanges
from serving.live_items.removed import RemovedItems
from serving.online.features import no_features
from serving.recommender.candidates import ItemFilter
from serving.recommender.filters import RequestRules
from serving.releases.delta import AddedItem, ItemTowerSession
from serving.releases.item_files import SPARE_ROWS
from serving.releases.release import Release, load_release, with_added
from tests.support.damaged_release import change_array, change_json, remade
from tests.support.event_log import kill_redis
from tests.support.tiny_release import GENRES, ITEMS, SPEC, TAGS, Tiny
from tests.support.waiting import wait_until

WAR = {
    "title": "The last story",
    "tags": ["tag1", "tag2"],
    "price": 16_777_217,
    "genre": "War",
    "format": "print",
}
LONG_AGO = "2020-01-01T00:00:00Z"


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """A store in which everything is registered and nothing is known."""
    workspace = Workspace(tmp_path)
    write_atomically(workspace.ingest / "dataset.json", SPEC.model_dump_json())
    apply(feature_store(workspace), workspace)
    yield workspace
    stop_redis(workspace.redis)


class Api:
    """A running app of its own event loop, asked one thing at a time."""

    def __init__(self, workspace: Workspace, release: Release) -> None:
        self._app, self._runner = create_app(workspace, release), asyncio.Runner()
        self._lifespan = self._app.router.lifespan_context(self._app)
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://localhost")

    @property
    def engine(self) -> Engine:
        engine: Engine = self._app.state.engine
        return engine

    def __enter__(self) -> Api:
        self._runner.run(self._lifespan.__aenter__())  # type: ignore[arg-type]
        return self

    def __exit__(self, *_: Any) -> None:
        self._runner.run(self._lifespan.__aexit__(None, None, None))  # type: ignore[arg-type]
        self._runner.close()

    def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._runner.run(self._client.request(method, path, **options))

    def ask(self, user: str = "u0", **options: Any) -> dict[str, Any]:
        answer = self("POST", "/v1/recommendations", json={"user_id": user, "k": 200, **options})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture
def api(workspace: Workspace, tiny: Tiny) -> Iterator[Api]:
    with Api(workspace, load_release(tiny.folder)) as client:
        yield client


def ids(answer: Any) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def put(api: Api, name: str, attributes: dict[str, Any] = WAR, **times: Any) -> bool:
    answer = api("PUT", f"/v1/items/{name}", json={"attributes": attributes, **times})
    assert answer.status_code == 202, answer.text
    assert answer.json()["item_id"] == name
    return bool(answer.json()["changed"])


def within_a_second(condition: Callable[[], bool]) -> None:
    wait_until(condition, 1.0)


def change(tiny: Tiny, folder: Path, damage: Callable[[Path], object]) -> Release:
    """Return another release, made of the tiny one."""
    remade(damage)(shutil.copytree(tiny.folder, folder))
    return load_release(folder)


def rename_last(name: str) -> Callable[[Path], None]:
    """Give the last item of a release another id, as if the release was made of later data."""

    def damage(folder: Path) -> None:
        change_json("codec.json", lambda of: of["items"].__setitem__(-1, name))(folder)
        path = folder / "items.arrow"
        with pa.OSFile(str(path), "rb") as file:
            table = pa.ipc.open_file(file).read_all()
        names = [*table.column(0).to_pylist()[:-1], name]
        table = table.set_column(0, table.column_names[0], pa.array(names))
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table.combine_chunks())

    return damage


def leave_spare(rows: int) -> Callable[[Path], None]:
    """Leave so many spare rows."""

    def damage(folder: Path) -> None:
        size = ITEMS + 1 + rows
        names = ["item_vectors", "raw_item_vectors", "neighbours", "similarities"]
        names += [f"items.{name}" for name in ("codes", "first", "categories", "numeric")]
        for name in names:
            change_array(f"{name}.npy", lambda of: of[:size].copy())(folder)
        change_array("items.times.npy", lambda of: of[:, :size].copy())(folder)

    return damage


def test_the_exported_item_tower_is_the_trained_one_without_ids(tiny: Tiny, tmp_path: Path) -> None:
    export_item_tower(tiny.towers, tmp_path / "item_tower.onnx")
    assert (tmp_path / "item_tower.onnx").read_bytes() == (
        tiny.folder / "item_tower.onnx"
    ).read_bytes()
    tower, encoded = (
        ItemTowerSession((tmp_path / "item_tower.onnx").read_bytes()),
        tiny.items.encoded,
    )
    numbers = tiny.codec.item_attributes.standardise(encoded.numbers)
    tiny.towers.items.has_id[:] = 0.0
    try:
        with torch.no_grad():
            expected = tiny.towers.raw_items().numpy()
    finally:
        tiny.towers.items.has_id[:] = 1.0
    for size in (1, 2, ITEMS):
        found = tower(encoded.codes[1 : size + 1], numbers[1 : size + 1])
        assert found.dtype == np.float32 and np.abs(found - expected[1 : size + 1]).max() < 1e-5


def offers(tiny: Tiny, user: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return attributes, of many, whose items lie nearest to and furthest from a user.

    Nothing is known of the user.
    """
    generator, release = np.random.default_rng(8), load_release(tiny.folder)
    many = [
        {
            "tags": generator.permutation(TAGS)[: generator.integers(1, 5)].tolist(),
            "price": float(generator.uniform(1, 50)),
            "genre": str(generator.choice(GENRES)),
        }
        for _ in range(500)
    ]
    tried = with_added(release, {f"n{n}": AddedItem(one, 0.0) for n, one in enumerate(many)})
    users = tried.reader.read(no_features(user, tried.codec), np.array([time.time()]))
    near = tried.retrieval.vectors[ITEMS + 1 :] @ tried.retrieval.tower(users.context)[0]
    return many[int(near.argmax())], many[int(near.argmin())]


def test_an_added_item_is_shown_to_whom_it_fits_by_all_servers(
    tiny: Tiny, workspace: Workspace, api: Api
) -> None:
    fitting, unfitting = offers(tiny, "u0")

    def sources(of: Api) -> dict[str, list[str]]:
        return {item["item_id"]: item["sources"] for item in of.ask()["items"]}

    with Api(workspace, load_release(tiny.folder)) as other:
        assert not {"right", "wrong"} & {*sources(api), *sources(other)}
        assert put(api, "right", fitting, available_from=LONG_AGO)
        assert sources(api)["right"] == ["two_tower"]
        within_a_second(lambda: sources(other).get("right") == ["two_tower"])
        assert not put(other, "right", fitting, available_from=LONG_AGO), "it is so already"
        assert put(other, "wrong", unfitting, available_from=LONG_AGO)
        assert sources(other)["wrong"] == ["backfill"]
        within_a_second(lambda: "wrong" in sources(api))


def test_a_new_item_comes_with_the_new_ones_and_is_explained(api: Api) -> None:
    assert put(api, "fresh", {})  # nothing is known of it but that it is there
    answer = api.ask(k=50, explain=True)
    (shown,) = [item for item in answer["items"] if item["item_id"] == "fresh"]
    assert "new" in shown["sources"] and shown["explain"]["features"]
    assert api.ask(filters={"genre": {"in": ["War"]}})["items"]
    assert "fresh" not in ids(api.ask(exclude=["fresh"]))


def test_rules_hold_for_added_items(api: Api) -> None:
    put(api, "war", WAR, available_from=LONG_AGO)
    put(api, "bare", {}, available_from=LONG_AGO)
    matching = [
        {"genre": {"in": ["War"]}}, {"genre": {"not_in": ["Drama"]}}, {"tags": {"in": ["tag2"]}},
        {"price": {"min": 16_777_216.5}},
        {"price": {"min": 16_777_217}, "tags": {"not_in": ["tag3"]}},
    ]  # fmt: skip
    for filters in matching:
        assert "war" in ids(api.ask(filters=filters)), filters
    for filters in (
        {"genre": {"not_in": ["War"]}},
        {"tags": {"in": ["tag3"]}},
        {"price": {"max": 16_777_216}},
    ):
        assert "war" not in ids(api.ask(filters=filters)), filters
    only = ids(api.ask(filters={"price": {"min": 16_777_217}}))
    assert only == ["war"]
    assert "bare" in ids(api.ask(filters={"genre": {"not_in": ["War"]}}))
    assert "bare" not in ids(api.ask(filters={"price": {"min": -1e30}}))


def test_an_added_item_can_be_had_while_it_is_available(api: Api) -> None:
    now = time.time()
    put(api, "soon", WAR, available_from=now + 1.0)
    put(api, "gone", WAR, available_until=now + 1.0)
    first = ids(api.ask())
    assert "soon" not in first and "gone" in first
    time.sleep(1.1)
    later = ids(api.ask())
    assert "soon" in later and "gone" not in later


def test_an_added_item_stays_when_a_release_has_it_from_the_log_alone(
    workspace: Workspace, tiny: Tiny
) -> None:
    """Its availability ends with the log, as of all items that are in no item table."""
    release = load_release(tiny.folder)
    code = 3
    name = release.codec.items.values[code - 1]
    until = release.items.available_until.copy()
    until[code] = time.time() - 60.0
    items = replace(release.items, available_until=until)
    release = replace(release, retrieval=replace(release.retrieval, items=items))
    raw = {key: [None if row == code else column[row] for row in range(len(column))]
           for key, column in items.raw.items()}  # fmt: skip
    bare = replace(items, raw=raw)
    loaded = replace(release, retrieval=replace(release.retrieval, items=bare))
    changes = ItemChanges(workspace)
    assert not changes.without_removed(loaded, bare).available(time.time())[code]
    assert not changes.without_removed(release, items).available(time.time())[code]

    AddedItems(workspace).add(name, WAR, available_from=None, available_until=None, now=1.0)
    assert changes.poll()
    assert changes.without_removed(loaded, bare).available(time.time())[code]
    # The item table of the release has it: its own end counts.
    assert not changes.without_removed(release, items).available(time.time())[code]
    RemovedItems(workspace).remove(name)
    assert changes.poll()
    assert not changes.without_removed(loaded, bare).available(time.time())[code]


@pytest.mark.parametrize("until", ["9999-12-31", "0000-00-00 00:00:00", "", None])
def test_an_end_that_means_none(api: Api, until: str | None) -> None:
    put(api, "fresh", WAR, available_from=LONG_AGO, available_until=until)
    assert "fresh" in ids(api.ask())


def test_words_for_nothing_are_no_items(api: Api) -> None:
    for word in ("undefined", "null"):
        answer = api("PUT", f"/v1/items/{word}", json={"attributes": WAR})
        assert answer.status_code == 422
        assert "missing id" in answer.json()["detail"]


def test_similar_items_of_and_among_added_ones(api: Api) -> None:
    put(api, "one", WAR)
    put(api, "two", WAR | {"price": 16_000_000})
    answer = api("GET", "/v1/items/one/similar", params={"k": 5}).json()
    assert ids(answer)[0] == "two" and answer["items"][0]["sources"] == ["two_tower"]
    assert answer["items"][0]["score"] > 0.9 and "one" not in ids(answer)
    assert api("GET", "/v1/items/three/similar").status_code == 404


def test_a_click_on_an_added_item_moves_its_user(tiny: Tiny, api: Api) -> None:
    put(api, "fresh")
    before = api.ask(user="walker")
    assert "no_history" in before["degraded"] and "fresh" in ids(before)
    click = {
        "event_id": "e1",
        "user_id": "walker",
        "item_id": "fresh",
        "type": "view",
        "timestamp": time.time(),
    }
    assert api("POST", "/v1/events", json={"events": [click]}).json()["accepted"] == 1
    after = api.ask(user="walker")
    assert "no_history" not in after["degraded"] and "fresh" not in ids(after)
    engine = api.engine
    features = engine.user_features("walker").columns
    assert features["view_count_10m"] == [1]
    release = engine.release
    context = release.reader.read(features, np.array([time.time()])).context
    assert context.history[0, 0] == release.codec.items.code("fresh") == ITEMS + 1
    raw = torch.from_numpy(release.retrieval.delta.arrays.raw)
    inputs = user_inputs(context, raw, torch.from_numpy(context.history.astype(np.int64)))
    with torch.no_grad():
        expected = tiny.towers.users(*inputs.tensors()).numpy()
    np.testing.assert_allclose(release.retrieval.tower(context), expected, atol=1e-5)
    context.history[:] = 0
    assert (expected @ release.retrieval.tower(context).T).item() < 0.999


def test_a_removed_item_goes_and_comes_back(workspace: Workspace, tiny: Tiny, api: Api) -> None:
    put(api, "fresh")
    assert api("DELETE", "/v1/items/fresh").json() == {"item_id": "fresh", "changed": True}
    assert "fresh" not in ids(api.ask())
    with Api(workspace, load_release(tiny.folder)) as other:  # it begins with the item removed
        assert "fresh" not in ids(other.ask())
        assert other("PUT", "/v1/items/fresh").json() == {"item_id": "fresh", "changed": True}
        assert "fresh" in ids(other.ask())
    within_a_second(lambda: "fresh" in ids(api.ask()))
    assert api("DELETE", "/v1/items/fresh").json()["changed"]
    assert put(api, "fresh")  # adding it again is to want it shown
    assert "fresh" in ids(api.ask())
    assert api("PUT", "/v1/items/unheard-of").status_code == 404


def test_a_changed_item_is_what_it_was_changed_to(
    workspace: Workspace, tiny: Tiny, api: Api
) -> None:
    war, drama = ({"genre": {"in": [genre]}} for genre in ("War", "Drama"))
    with Api(workspace, load_release(tiny.folder)) as other:
        put(api, "fresh", WAR)
        within_a_second(lambda: "fresh" in ids(other.ask(filters=war)))
        assert put(api, "fresh", WAR | {"genre": "Drama"})
        assert "fresh" in ids(api.ask(filters=drama)) and "fresh" not in ids(api.ask(filters=war))
        within_a_second(lambda: "fresh" in ids(other.ask(filters=drama)))
        assert "fresh" not in ids(other.ask(filters=war))


def test_added_items_outlast_restarts_and_releases(
    workspace: Workspace, tiny: Tiny, tmp_path: Path
) -> None:
    with Api(workspace, load_release(tiny.folder)) as api:
        put(api, "fresh", WAR | {"genre": "Drama"}, available_from=LONG_AGO)
        put(api, "other", WAR, available_from=LONG_AGO)
    newer = change(tiny, tmp_path / "newer", rename_last("fresh"))
    with Api(workspace, load_release(tiny.folder)) as api:
        assert {"fresh", "other"} <= set(ids(api.ask()))
        engine = api.engine
        first = engine.snapshot.loaded
        engine.adopt(newer)  # it has "fresh" itself, where the older one has its last item
        assert (
            engine.release.codec.items.code("fresh") == ITEMS
            and engine.release.codec.items.code("other") == ITEMS + 1
        )
        assert engine.items.raw["genre"][ITEMS] == tiny.items.raw["genre"][ITEMS] != "Drama"
        assert {"fresh", "other"} <= set(ids(api.ask()))
        refused = api("PUT", "/v1/items/fresh", json={"attributes": WAR})
        assert refused.status_code == 409 and "next release" in refused.json()["detail"]
        engine.adopt(first)  # a rollback
        assert {"fresh", "other", "i40"} <= set(ids(api.ask()))
        assert engine.items.raw["genre"][engine.release.codec.items.code("fresh")] == "Drama"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "attributes"),
        ({"attributes": WAR, "colour": "red"}, "colour"),
        (
            {"attributes": {"colour": "red"}},
            "colour: items have no such attribute; they have ['format', 'genre'",
        ),
        ({"attributes": {"genre": 3}}, "genre: it is categorical"),
        ({"attributes": {"tags": "tag1"}}, "tags: it is multi_categorical"),
        ({"attributes": {"tags": [1]}}, "tags: it is multi_categorical"),
        ({"attributes": {"tags": ["t"] * 1_001}}, "tags: it is multi_categorical"),
        ({"attributes": {"price": "3"}}, "price: it is numeric"),
        ({"attributes": {"price": True}}, "price: it is numeric"),
        ({"attributes": {"genre": "x" * 1_001}}, "genre: it is categorical"),
        ({"attributes": {"title": "x" * 100_001}}, "title: it is text"),
        ({"attributes": {"price": 1e308}}, "1000000000000000"),
        ({"attributes": WAR, "available_from": "soon"}, "available_from"),
        ({"attributes": WAR, "available_from": "now"}, "ISO 8601"),
        ({"attributes": WAR, "available_from": 20261128}, "2026-11-28"),
        ({"attributes": WAR, "available_until": "31/12/2027"}, "ISO 8601"),
        ({"attributes": WAR, "available_from": True}, "available_from"),
        ({"attributes": WAR, "available_until": "2020-13-01"}, "available_until"),
        ([], "body"),
    ],
)
def test_wrong_bodies_are_refused_with_their_reason(api: Api, body: Any, says: str) -> None:
    answer = api("PUT", "/v1/items/fresh", json=body)
    assert (
        answer.status_code == 422 and answer.headers["content-type"] == "application/problem+json"
    )
    assert says in answer.json()["detail"]
    assert api("PUT", "/v1/items/fresh").status_code == 404  # nothing was added


@pytest.mark.parametrize(
    "value", ['"price": NaN', '"price": 1e999', f'"price": 1{400 * "0"}', '"genre": "\\ud800"']
)
def test_values_that_are_none_are_refused(api: Api, value: str) -> None:
    answer = api(
        "PUT",
        "/v1/items/fresh",
        content=f'{{"attributes": {{{value}}}}}',
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 422, answer.text


def test_ids_have_a_length(api: Api) -> None:
    for name, status in (("x" * 256, 202), ("x" * 257, 422)):
        assert api("PUT", f"/v1/items/{name}", json={"attributes": {}}).status_code == status


def test_items_of_the_release_are_as_it_has_them(api: Api) -> None:
    refused = api("PUT", "/v1/items/i1", json={"attributes": WAR})
    assert refused.status_code == 409 and refused.json()["detail"].endswith(
        "change with the next release"
    )


def test_without_redis_nothing_is_added_and_serving_goes_on(workspace: Workspace, api: Api) -> None:
    put(api, "fresh")
    kill_redis(workspace)
    refused = api("PUT", "/v1/items/later", json={"attributes": WAR})
    assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
    assert "fresh" in ids(api.ask())


def test_when_the_spare_rows_are_used_up_nothing_is_lost(
    workspace: Workspace, tiny: Tiny, tmp_path: Path
) -> None:
    tight = change(tiny, tmp_path / "tight", leave_spare(3))
    with Api(workspace, tight) as api:
        for name in ("a", "b", "c"):
            put(api, name, available_from=LONG_AGO)
        refused = api("PUT", "/v1/items/d", json={"attributes": WAR})
        assert refused.status_code == 507 and "make a new one" in refused.json()["detail"]
        assert put(api, "c", WAR | {"genre": "Drama"}), "a row that is in use can be changed"
        assert {"a", "b", "c"} <= set(ids(api.ask()))
        with Api(workspace, load_release(tiny.folder)) as roomy:  # as during a change of releases
            put(roomy, "d", available_from=LONG_AGO)
            within_a_second(lambda: "d" in ids(roomy.ask()))
        time.sleep(0.6)
        assert {"a", "b", "c"} <= set(ids(api.ask())) and "d" not in ids(api.ask())
        assert api("DELETE", "/v1/items/a").status_code == 202
    with Api(workspace, change(tiny, tmp_path / "same", leave_spare(3))) as api:
        assert {"b", "c", "d"} <= set(ids(api.ask())), (
            "a removed item takes no row of those that start anew"
        )


def test_spare_rows_are_never_shown(tiny: Tiny) -> None:
    """Whatever is added: codes stay within what there is, and lists have known items only."""
    release, generator = load_release(tiny.folder), np.random.default_rng(5)
    users, added = tiny.clickers(), {}
    for number in (0, 1, 2, 10, 40):
        added |= {
            f"n{n}": AddedItem({"genre": str(generator.choice(GENRES))}, 0.0) for n in range(number)
        }
        shown = with_added(release, added)
        size = ITEMS + 1 + len(added)
        assert len(shown.items) == len(shown.codec.items) == len(shown.retrieval.vectors) == size
        requests = [RequestRules(500)] * len(users)
        lists, ranked, _ = shown.recommender.recommend_ranked(users, requests, shown.items)
        lists += [shown.recommender.popular(users, 0, requests[0], shown.items)]
        assert ranked.candidates.item.max() < size
        for found in lists:
            assert set(found.items) <= set(range(1, size)) and all(
                shown.codec.items.names(found.items)
            )
            assert added.keys() <= set(shown.codec.items.names(found.items))
        assert len(release.items) == len(release.codec.items) == ITEMS + 1  # as it was loaded
    again = with_added(release, {})
    lists = again.recommender.recommend(users, requests, again.items)
    assert (
        not {name for found in lists for name in again.codec.items.names(found.items)}
        & added.keys()
    )


@pytest.mark.parametrize("allowed", [1.0, 0.4])
def test_the_nearest_of_all_items_are_found_within_what_is_allowed(
    tiny: Tiny, allowed: float
) -> None:
    generator = np.random.default_rng(6)
    offered = {
        f"n{n}": AddedItem({"genre": str(generator.choice(GENRES)), "price": n}, 0.0)
        for n in range(30)
    }
    release = with_added(load_release(tiny.folder), offered)
    vectors = generator.normal(size=(50, release.retrieval.vectors.shape[1])).astype(np.float32)
    among = generator.random(len(release.items)) < allowed
    prefilter = ItemFilter(among) if allowed < 1 else None
    cosines, codes = release.retrieval.retriever.nearest(vectors, 12, prefilter)
    exact = vectors @ release.retrieval.vectors[1:].T
    exact[:, ~among[1:]] = -np.inf
    np.testing.assert_allclose(cosines, -np.sort(-exact, axis=1)[:, :12], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(exact, codes - 1, axis=1), cosines, atol=1e-5)
    assert (codes > ITEMS).any() and (codes <= ITEMS).any()


def test_counters_of_another_process_fit_with_added_items(
    workspace: Workspace, tiny: Tiny, tmp_path: Path
) -> None:
    release, files = load_release(tiny.folder), CounterFiles(tmp_path / "counters")
    files.publish(release, tiny.items.activity, "2026-01-01T00:00:00+00:00")
    engine = Engine(release, workspace, counters=CounterFiles(tmp_path / "counters"))
    try:
        for name in ("before", "after"):
            engine.add_item(name, ItemUpdate(attributes=WAR, available_from=1e9))
            assert name in ids(engine.recommend(RecommendationRequest(user_id="u0", k=200)))
            rows = engine.items.rows.numeric
            counts = len(engine.release.codec.item_activity)
            assert np.isnan(rows[-1, :counts]).all() and rows[-1, counts:].tolist() == [
                16_777_216.0
            ]
            assert np.array_equal(rows[: ITEMS + 1], tiny.items.rows.numeric, equal_nan=True)
            files.publish(release, tiny.items.activity, "2026-01-02T00:00:00+00:00")
            engine.refresh_items()
            assert len(engine.items.rows.numeric) == len(engine.items)
    finally:
        engine.close()
    logged = read_impressions(workspace.impressions)["added"].to_pylist()
    assert logged == [1, 2]


def test_items_that_no_server_needs_are_deleted(
    workspace: Workspace, tiny: Tiny, tmp_path: Path
) -> None:
    now = time.time()
    added = AddedItems(workspace)
    for name, days in {"fresh": 31, "gone": 31, "kept": 31, "young": 1}.items():
        at = now - days * 86_400
        added.add(name, {}, available_from=None, available_until=None, now=at)
    engine = Engine(load_release(tiny.folder), workspace, log_impressions=False)
    assert engine.remove_item("gone") and engine.remove_item("young")
    engine.adopt(change(tiny, tmp_path / "newer", rename_last("fresh")))
    assert engine.metrics.spare_rows._value.get() == SPARE_ROWS - 1
    assert (AddedItems(workspace).poll() or {}).keys() == {"kept", "young"}
    assert engine.restore_item("young") and engine.release.codec.items.code("young")


def test_what_a_process_adds_is_its_own(tiny: Tiny) -> None:
    """Rows are written to this process's copy of a page.

    They reach neither the file nor anyone else who has it mapped.
    """
    one, other = load_release(tiny.folder), load_release(tiny.folder)
    before = (tiny.folder / "item_vectors.npy").read_bytes()
    with_added(one, {"fresh": AddedItem(WAR, 0.0)})
    assert (
        one.retrieval.delta.arrays.vectors[ITEMS + 1].any()
        and not other.retrieval.delta.arrays.vectors[ITEMS + 1].any()
    )
    assert (tiny.folder / "item_vectors.npy").read_bytes() == before


def test_attributes_of_another_data_set_count_as_missing(tiny: Tiny) -> None:
    release = load_release(tiny.folder)
    added = {"odd": AddedItem({"genre": 7, "colour": "red", "price": 3.0}, 0.0)}
    items = with_added(release, added).items
    assert [items.raw[name][ITEMS + 1] for name in ("genre", "price")] == [None, 3.0]
