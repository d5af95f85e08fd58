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
from feature_repo.hashing import file_hash
from pipelines.synthetic import generate as synthetic
from pipelines.synthetic.generate import (
    FILES,
    PAGES,
    generate,
    holds_another_world,
    make_world,
    simulate,
)
from pipelines.synthetic.world import (
    BUILT_IN,
    DAY,
    END,
    REPEAT_PENALTY,
    SESSION_GAP_S,
    World,
    WorldConfig,
)

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


FROZEN_SETTINGS = {
    "users": 3000,
    "items": 2000,
    "days": 120,
    "seed": 7,
    "events_per_user": 75.0,
    "latent_dim": 16,
    "taste": 7.0,
    "intent": 6.0,
    "popularity": 0.8,
    "rhythm": 0.6,
    "drift": 0.12,
    "deals": None,
}
"""Settings of `synthetic-full`: all published figures of the built-in world are of it."""

FROZEN_SMALL = {
    "events.csv": "ba44d5187bc6a0bed3aad64ad3e21775ce228019f85f866ad248b686d1fdb2f1",
    "items.csv": "c7c50a4504bd1385de2c07dd487085387dbb4c2767e9554d7f3c3be4c2eac29f",
    "users.csv": "629ec78c1f848b3c64e959d91dd1dc1bff5aa4245b95b9042edea0f9a066a0f5",
}
"""SHA-256 of the files of SMALL, made by the same code in a second."""

FROZEN_FULL = {
    "events.csv": "46a12e673d4c8ee286eaf0e038646c4f49ec9d9f15e272f013d977684b98b1f0",
    "items.csv": "bfd58c9dfc94bd98d204d406a1614d95885f3dfd6d56cd19ce9ee0e79491c2fd",
    "users.csv": "b5fe05d07a6a9c14020fcadfb65a883f2fff171fe5d386823c576fc7be207d67",
}
"""SHA-256 of the files of `synthetic-full`."""


def test_the_world_of_the_published_figures_is_frozen(folder: Path) -> None:
    assert dataclasses.asdict(BUILT_IN["synthetic-full"]) == FROZEN_SETTINGS
    assert {name: file_hash(folder / name) for name in FROZEN_SMALL} == FROZEN_SMALL


def test_a_page_that_says_nothing_is_a_column_beside_the_same_events(
    folder: Path, tmp_path: Path
) -> None:
    generate(tmp_path, dataclasses.replace(SMALL, deals=0.0))
    rows = read(tmp_path / "events.csv")
    assert {row.pop("page") for row in rows} == set(PAGES)
    assert rows == read(folder / "events.csv")


def test_dear_items_lose_on_the_page_of_deals(tmp_path: Path) -> None:
    generate(tmp_path, dataclasses.replace(SMALL, deals=2.0))
    price = {row["item_id"]: float(row["price"]) for row in read(tmp_path / "items.csv")}
    viewed: dict[bool, list[float]] = {True: [], False: []}
    for row in read(tmp_path / "events.csv"):
        viewed[row["page"] == "deals"].append(price[row["item_id"]])
    assert np.median(viewed[True]) < 0.7 * np.median(viewed[False])


@pytest.mark.faults  # ten seconds of a processor; the small one above is of the same code
def test_every_byte_of_the_world_of_the_published_figures_is_frozen(tmp_path: Path) -> None:
    generate(tmp_path, BUILT_IN["synthetic-full"], "synthetic-full")
    assert {name: file_hash(tmp_path / name) for name in FROZEN_FULL} == FROZEN_FULL
    assert load_spec(tmp_path / "dataset.toml").name == "synthetic-full"


def test_a_folder_says_whether_it_holds_another_world(folder: Path) -> None:
    assert not holds_another_world(folder, SMALL)
    assert holds_another_world(folder, MEDIUM)
    assert not holds_another_world(folder / "absent", MEDIUM)


def test_another_seed_gives_another_world(folder: Path, tmp_path: Path) -> None:
    generate(tmp_path, WorldConfig(users=150, items=120, days=30, events_per_user=40, seed=8))
    for name in ("events.csv", "users.csv", "items.csv", "truth.npz"):
        assert contents(tmp_path)[name] != contents(folder)[name]


def test_spec_describes_the_files(folder: Path, events: Rows) -> None:
    spec = load_spec(folder / "dataset.toml")
    assert {name: kind.weight for name, kind in spec.events.types.items()} == {
        "view": 1,
        "like": 3,
        "purchase": 6,
    }
    assert spec.positive_types == ["view", "like", "purchase"]
    assert spec.users and spec.items and spec.category == "genre"
    source = spec.events
    assert {
        source.id,
        source.user,
        source.item,
        source.type,
        source.timestamp,
        source.value,
    } == set(events[0])
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
    world = dataclasses.replace(
        medium[0], available_until=np.maximum(ends, medium[0].available_from + 1)
    )
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
    _, times = np.unique(
        np.stack([log.user, log.item])[:, log.kind == 0], axis=1, return_counts=True
    )
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
    same = (world.user_codes[:, None, :2] == world.user_codes[None, :, :2]).all(2) & ~np.eye(
        len(tastes), dtype=bool
    )
    assert alike[same].mean() > alike[~same].mean() + 0.3


def test_utilities_are_the_exact_marginal_over_intents() -> None:
    world = make_world(SMALL)
    user, moment = np.array([3, 140]), np.array([END - 9 * DAY, END - 100.5])
    logits, intents = (
        world.affinity(user, moment) + world.appeal(moment),
        world.intents(user, moment),
    )
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


def test_first_views_are_as_probable_as_utilities_say(
    medium: tuple[World, synthetic.Events],
) -> None:
    """The mean log-probability of what happened is the mean negative entropy.

    It is so within sampling error.
    """
    world, log = medium
    views = np.flatnonzero(log.kind == 0)
    _, first = np.unique(log.user[views], return_index=True)
    user, item, moment = (
        log.user[views[first]],
        log.item[views[first]],
        log.time[views[first]].astype(float),
    )
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


@dataclasses.dataclass
class NextViews:
    """New items viewed in the last fifth of the time.

    Each comes with the user's views of earlier sessions and of this one.
    """

    user: Any
    item: Any
    start: Any
    before: list[Any]
    earlier: list[Any]

    @classmethod
    def of(cls, log: synthetic.Events, config: WorldConfig, limit: int) -> NextViews:
        views = np.flatnonzero(log.kind == 0)
        views = views[np.lexsort((log.time[views], log.user[views]))]
        user, item, moment = log.user[views], log.item[views], log.time[views]
        starts = np.append(True, (np.diff(user) > 0) | (np.diff(moment) > SESSION_GAP_S))
        session = np.maximum.accumulate(np.where(starts, np.arange(len(views)), 0))
        joined = np.searchsorted(user, user)
        late = np.flatnonzero(moment >= END - 0.2 * config.days * DAY)
        late = np.array(
            [
                at
                for at in late[:: max(1, len(late) // limit)]
                if item[at] not in item[joined[at] : at]
            ]
        )
        before = [item[joined[at] : session[at]] for at in late]
        earlier = [item[session[at] : at] for at in late]
        return cls(user[late], item[late], moment[session[late]].astype(float), before, earlier)

    @property
    def inside(self) -> Any:
        """Whether it is not its session's first view."""
        return np.array([len(views) > 0 for views in self.earlier])

    def gains(self, scores: Any) -> Any:
        """Return each view's NDCG@10 among the items not seen before."""
        scores = np.array(scores)
        for row, seen in enumerate(zip(self.before, self.earlier, strict=True)):
            scores[row, np.concatenate(seen)] = -np.inf
        ranks = (scores > scores[np.arange(len(scores)), self.item][:, None]).sum(1)
        return np.where(ranks < 10, 1 / np.log2(ranks + 2), 0)


def test_oracle_clearly_beats_popularity(medium: tuple[World, synthetic.Events]) -> None:
    world, log = medium
    views = NextViews.of(log, MEDIUM, limit=1500)
    early = (log.kind == 0) & (log.time < END - 0.2 * MEDIUM.days * DAY)
    popularity = np.bincount(log.item[early], minlength=MEDIUM.items)
    utilities = world.utilities(views.user, views.start)
    oracle = views.gains(utilities).mean()
    popular = views.gains(np.where(np.isfinite(utilities), popularity, -np.inf)).mean()
    assert 0.6 > oracle > 2 * popular > 0


def test_the_session_tells_its_intent(medium: tuple[World, synthetic.Events]) -> None:
    world, log = medium
    views = NextViews.of(log, MEDIUM, limit=3000)
    first = world.utilities(views.user, views.start)
    told = world.session_utilities(views.user, views.start, views.earlier)
    np.testing.assert_array_equal(told[~views.inside], first[~views.inside])
    better = (views.gains(told) - views.gains(first))[views.inside]
    assert len(better) > 1000
    assert better.mean() > 0.1
    knowing = world.session_utilities(views.user, views.start, views.earlier, views.before)
    assert views.gains(knowing).mean() > views.gains(told).mean()


def test_session_utilities_follow_from_the_model_by_bayes() -> None:
    world, earlier, before = make_world(SMALL), [7, 3, 11], [3, 5, 9, 9]
    user, moment = np.array([3]), np.array([END - 9 * DAY])
    world = dataclasses.replace(
        world, available_from=np.where(np.arange(SMALL.items) == 20, END, 0.0)
    )
    logits = (world.affinity(user, moment) + world.appeal(moment))[0]
    logits -= REPEAT_PENALTY[np.bincount(before, minlength=SMALL.items)]
    joint = np.zeros(SMALL.items)
    for intent, pull in zip(world.intents(user, moment)[0], world.intent_pull.T, strict=True):
        weight, share = np.exp(logits + pull), np.exp(intent)
        for item in earlier:
            share *= weight[item] / weight.sum()
            weight[item] = 0
        joint += share * weight / weight.sum()
    told = world.session_utilities(user, moment, [np.array(earlier)], [np.array(before)])
    assert told.dtype == np.float32
    np.testing.assert_allclose(np.exp(told[0]), joint / joint.sum(), rtol=1e-4)
    assert set(np.flatnonzero(np.isneginf(told[0]))) >= {3, 7, 9, 11, 20}


def test_views_are_as_probable_as_session_utilities_say(
    medium: tuple[World, synthetic.Events],
) -> None:
    """The mean log-probability of what happened is the mean negative entropy.

    It is so within sampling error.
    """
    world, log = medium
    views = NextViews.of(log, MEDIUM, limit=3000)
    logp = world.session_utilities(views.user, views.start, views.earlier, views.before).astype(
        np.float64
    )
    for row, seen in enumerate(views.before):  # only new items were asked for
        logp[row, seen] = -np.inf
    logp -= np.log(np.exp(logp).sum(1, keepdims=True))
    entropy = -(np.exp(logp) * np.where(np.isfinite(logp), logp, 0.0)).sum(1)
    excess = -logp[np.arange(len(logp)), views.item] - entropy
    assert abs(excess.mean()) < 4 * excess.std() / np.sqrt(len(excess))


def test_any_number_of_requests_is_scored_alike() -> None:
    world, rng = make_world(SMALL), np.random.default_rng(0)
    user, moment = rng.integers(SMALL.users, size=600), END - DAY * rng.uniform(1, 20, 600)
    earlier = [rng.permutation(SMALL.items)[: at % 15] for at in range(600)]
    together = world.session_utilities(user, moment, earlier)
    alone = world.session_utilities(user[-1:], moment[-1:], earlier[-1:])
    np.testing.assert_allclose(together[-1:], alone, rtol=1e-5)
    assert world.session_utilities(user[:0], moment[:0], []).shape == (0, SMALL.items)


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
def test_a_run_killed_half_way_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
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


@pytest.mark.parametrize(
    "wrong", [{"users": 0}, {"items": 5}, {"days": 0}, {"events_per_user": 0.0}]
)
def test_a_world_too_small_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a world needs"):
        WorldConfig(**wrong)
