"""The synthetic world: reproducible, causal, and as learnable as it claims to be."""

from __future__ import annotations

import csv
import dataclasses
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_repo.dataset import load_spec
from pipelines import synthetic
from pipelines.synthetic import DAY, END, FILES, World, WorldConfig, generate, make_world, simulate

SMALL = WorldConfig(users=150, items=120, days=30, events_per_user=40)
MEDIUM = WorldConfig(users=500, items=500, days=60, events_per_user=60)
Rows = list[dict[str, str]]


def read(path: Path) -> Rows:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def seconds(text: str) -> int:
    return int(np.datetime64(text.removesuffix("Z"), "s").astype(np.int64))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world")
    generate(path, SMALL)
    return path


@pytest.fixture(scope="module")
def events(folder: Path) -> Rows:
    return read(folder / "events.csv")


@pytest.fixture(scope="module")
def medium() -> tuple[World, synthetic.Events]:
    world = make_world(MEDIUM)
    return world, simulate(world, MEDIUM)


def test_the_same_seed_gives_the_same_bytes_at_any_moment(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 1e6)
    generate(tmp_path, SMALL)
    assert contents(tmp_path) == contents(folder)
    assert set(contents(folder)) == {*FILES, "config.json"}


def test_another_seed_gives_another_world(folder: Path, tmp_path: Path) -> None:
    generate(tmp_path, WorldConfig(users=150, items=120, days=30, events_per_user=40, seed=8))
    for name in ("events.csv", "users.csv", "items.csv", "truth.npz"):
        assert contents(tmp_path)[name] != contents(folder)[name]


def test_spec_describes_the_files(folder: Path, events: Rows) -> None:
    spec = load_spec(folder / "dataset.toml")
    assert {name: kind.weight for name, kind in spec.events.types.items()} == {"view": 1, "like": 3, "purchase": 6}
    assert spec.positive_types == ["view", "like", "purchase"]
    assert spec.users and spec.items and spec.category == "genre"
    source = spec.events
    assert {source.id, source.user, source.item, source.type, source.timestamp, source.value} == set(events[0])
    assert {spec.users.key, *spec.users.attributes} == set(read(folder / spec.users.path)[0])
    dates = {spec.items.available_from, spec.items.available_until}
    items = read(folder / spec.items.path)
    assert {spec.items.key, *spec.items.attributes, *dates} == set(items[0])
    assert all(1 <= len(set(row["genre"].split(spec.items.list_separator))) <= 3 for row in items)
    assert {row["event_type"] for row in events} == set(spec.event_types)


def test_size_is_about_what_was_asked(events: Rows) -> None:
    assert len(events) == pytest.approx(SMALL.users * SMALL.events_per_user, rel=0.2)


def test_events_are_sorted_unique_and_valued_only_when_bought(folder: Path, events: Rows) -> None:
    times = [row["timestamp"] for row in events]
    assert times == sorted(times)
    assert len({row["event_id"] for row in events}) == len(events)
    price = {row["item_id"]: row["price"] for row in read(folder / "items.csv")}
    for row in events:
        assert row["value"] == (price[row["item_id"]] if row["event_type"] == "purchase" else "")


def test_likes_and_purchases_follow_a_view(events: Rows) -> None:
    viewed: dict[tuple[str, str], int] = {}
    for row in events:
        pair, moment = (row["user_id"], row["item_id"]), seconds(row["timestamp"])
        if row["event_type"] == "view":
            viewed.setdefault(pair, moment)
        else:
            assert viewed[pair] < moment
    kinds = Counter(row["event_type"] for row in events)
    assert kinds["view"] > 3 * kinds["like"] > 3 * kinds["purchase"] > 0


def test_nothing_happens_out_of_availability_or_before_joining(folder: Path, events: Rows) -> None:
    world = World.load(folder / "truth.npz")
    joined = dict(zip(world.user_ids, world.joined, strict=True))
    items = {row["item_id"]: row for row in read(folder / "items.csv")}
    for row in events:
        item = items[row["item_id"]]
        assert item["available_from"] <= row["timestamp"] < (item["available_until"] or "9999")
        assert joined[row["user_id"]] <= seconds(row["timestamp"]) < END


def test_no_session_outlives_an_item(medium: tuple[World, synthetic.Events]) -> None:
    rng = np.random.default_rng(0)
    ends = END - MEDIUM.days * DAY * rng.uniform(0, 0.8, MEDIUM.items)
    world = dataclasses.replace(medium[0], available_until=np.maximum(ends, medium[0].available_from + 1))
    log = simulate(world, MEDIUM)
    assert len(log.time) > 1000
    assert (log.time < world.available_until[log.item]).all()
    assert (log.time >= world.available_from[log.item]).all()


def test_no_session_outlives_the_world() -> None:
    day = WorldConfig(users=500, items=100, days=1, events_per_user=20)
    log = simulate(make_world(day), day)
    assert END - 600 < log.time.max() < END
    assert log.time.min() >= END - DAY


def test_the_world_changes_over_time(medium: tuple[World, synthetic.Events]) -> None:
    world, _ = medium
    start = END - MEDIUM.days * DAY
    for share in (np.mean(world.joined > start), np.mean(world.available_from > start)):
        assert 0.2 < share < 0.6
    assert 0.05 < np.isfinite(world.available_until).mean() < 0.2
    first, last = world.tastes[:, 0], world.tastes[:, -1]
    alike = (first * last).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(last, axis=1)
    assert 0.6 < alike.mean() < 0.97


def test_popularity_has_a_long_tail(medium: tuple[World, synthetic.Events]) -> None:
    _, log = medium
    counts = np.sort(np.bincount(log.item[log.kind == 0], minlength=MEDIUM.items))[::-1]
    assert counts[: MEDIUM.items // 10].sum() > 0.25 * counts.sum()
    assert np.count_nonzero(counts) > 0.8 * MEDIUM.items


def test_items_are_rarely_viewed_again(medium: tuple[World, synthetic.Events]) -> None:
    _, log = medium
    _, times = np.unique(np.stack([log.user, log.item])[:, log.kind == 0], axis=1, return_counts=True)
    assert times.max() <= 2
    assert (times == 2).mean() < 0.08


def test_a_session_keeps_to_its_genres(medium: tuple[World, synthetic.Events]) -> None:
    world, log = medium
    views = np.flatnonzero(log.kind == 0)
    views = views[np.lexsort((log.time[views], log.user[views]))]
    same_user = np.diff(log.user[views]) == 0
    gap = np.diff(log.time[views])
    genres = world.item_genres[log.item[views]]
    common = np.any(genres[1:] & genres[:-1], axis=1)
    assert common[same_user & (gap < 1300)].mean() > common[same_user & (gap > 3600)].mean() + 0.05
    assert common[same_user & (gap > 3600)].mean() > common[~same_user].mean() + 0.05


def test_attributes_tell_something_of_the_taste(medium: tuple[World, synthetic.Events]) -> None:
    world, _ = medium
    tastes = world.tastes[:, 0] / np.linalg.norm(world.tastes[:, 0], axis=1, keepdims=True)
    alike = tastes @ tastes.T
    same = (world.user_codes[:, None, :2] == world.user_codes[None, :, :2]).all(2) & ~np.eye(len(tastes), dtype=bool)
    assert alike[same].mean() > alike[~same].mean() + 0.3


def test_utilities_are_the_exact_marginal_over_intents() -> None:
    world = make_world(SMALL)
    user, moment = np.array([3, 140]), np.array([END - 9 * DAY, END - 100.5])
    logits, intents = world.affinity(user, moment) + world.appeal(moment), world.intents(user, moment)
    expected = np.zeros_like(logits)
    for theme, pull in enumerate(world.intent_pull.T):
        weight = np.exp(logits + pull)
        expected += np.exp(intents[:, [theme]]) * weight / weight.sum(1, keepdims=True)
    utilities = world.utilities(user, moment)
    assert utilities.dtype == np.float32 and utilities.shape == (2, SMALL.items)
    np.testing.assert_allclose(np.exp(utilities), expected, rtol=1e-4)
    np.testing.assert_allclose(np.exp(utilities).sum(1), 1, rtol=1e-4)
    there = (world.available_from <= moment[:, None]) & (moment[:, None] < world.available_until)
    assert (np.isfinite(utilities) == there).all()
    assert not there.all()


def test_first_views_are_as_probable_as_utilities_say(medium: tuple[World, synthetic.Events]) -> None:
    """The mean log-probability of what happened is the mean negative entropy, within sampling error."""
    world, log = medium
    views = np.flatnonzero(log.kind == 0)
    _, first = np.unique(log.user[views], return_index=True)
    user, item, moment = log.user[views[first]], log.item[views[first]], log.time[views[first]].astype(float)
    logp = world.utilities(user, moment).astype(np.float64)
    told = np.where(np.isfinite(logp), logp, 0.0)
    entropy = -(np.exp(logp) * told).sum(1)
    surprise = -logp[np.arange(len(user)), item]
    error = (surprise - entropy).std() / np.sqrt(len(user))
    assert abs((surprise - entropy).mean()) < 4 * error


def test_truth_comes_back_from_disk(tmp_path: Path) -> None:
    world = make_world(SMALL)
    world.save(tmp_path / "truth.npz")
    again = World.load(tmp_path / "truth.npz")
    assert (again.user_ids, again.item_ids) == (world.user_ids, world.item_ids)
    user, moment = np.arange(5), np.full(5, END - DAY)
    np.testing.assert_array_equal(again.utilities(user, moment), world.utilities(user, moment))


def ndcg_of_next_views(world: World, log: synthetic.Events, config: WorldConfig, limit: int) -> tuple[float, float]:
    """Return NDCG@10 of the oracle and of popularity on new items viewed in the last fifth of the time."""
    cut = END - 0.2 * config.days * DAY
    views = np.flatnonzero(log.kind == 0)
    popularity = np.bincount(log.item[views[log.time[views] < cut]], minlength=config.items).astype(float)
    late = views[log.time[views] >= cut]
    late = late[:: max(1, len(late) // limit)]
    gains = []
    for event in late:
        user, item, moment = log.user[event], log.item[event], log.time[event]
        before = views[(log.user[views] == user) & (log.time[views] < moment)]
        if item in log.item[before]:
            continue
        true = world.utilities(np.array([user]), np.array([moment], dtype=float))[0]
        true[log.item[before]] = -np.inf
        known = np.where(np.isfinite(true), popularity, -np.inf)
        ranks = [(score > score[item]).sum() for score in (true, known)]
        gains.append([1 / np.log2(rank + 2) if rank < 10 else 0.0 for rank in ranks])
    oracle, popular = np.mean(gains, axis=0)
    return float(oracle), float(popular)


def test_oracle_clearly_beats_popularity(medium: tuple[World, synthetic.Events]) -> None:
    world, log = medium
    oracle, popular = ndcg_of_next_views(world, log, MEDIUM, limit=1500)
    assert oracle > 2 * popular > 0
    assert oracle < 0.6


def test_a_finished_folder_is_only_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_: WorldConfig) -> World:
        raise AssertionError("made anew")

    monkeypatch.setattr(synthetic, "make_world", never)
    assert generate(folder, SMALL).item_ids[0] == "i0001"


@pytest.mark.parametrize("name", [*FILES, "config.json"])
def test_a_missing_file_is_made_again(folder: Path, name: str) -> None:
    before = contents(folder)
    (folder / name).unlink()
    generate(folder, SMALL)
    assert contents(folder) == before


@pytest.mark.parametrize("survived", range(6))
def test_a_run_killed_half_way_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int) -> None:
    tiny = WorldConfig(users=20, items=30, days=5, events_per_user=10)
    other = WorldConfig(users=20, items=30, days=5, events_per_user=10, seed=1)
    generate(tmp_path, tiny)
    before = contents(tmp_path)
    calls = iter(range(100))
    real = os.replace

    def dies(source: Any, target: Any) -> None:
        if next(calls) == survived:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            generate(tmp_path, other)
    generate(tmp_path, tiny)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("wrong", [{"users": 0}, {"items": 5}, {"days": 0}, {"events_per_user": 0.0}])
def test_a_world_too_small_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a world needs"):
        WorldConfig(**wrong)
