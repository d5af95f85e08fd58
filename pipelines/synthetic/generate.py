"""The built-in synthetic world: its users choose among its items, and the reasons are known.

``pipelines.synthetic.world`` holds these reasons; here they are drawn, lived through and written to
files. A session's views are drawn by the Gumbel-top-k trick (Kool et al. 2019,
https://arxiv.org/abs/1903.06059), which is a softmax choice repeated. Choices are made in float64,
so that the last bit of a processor's ``exp`` moves no event.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from feature_repo.arrays import BoolArray, Float64Array, Int64Array
from feature_repo.files import write_atomically
from pipelines.synthetic.world import (
    DAY,
    END,
    MAX_VIEWS,
    REPEAT_PENALTY,
    SESSION_GAP_S,
    THEMES_PER_GENRE,
    World,
    WorldConfig,
)

VERSION = 1
"""Raised when the same configuration gives other bytes; older folders are then regenerated."""

CONFIG = "config.json"
"""File of the settings that a folder's world was made with."""

FILES = ("events.csv", "users.csv", "items.csv", "truth.npz", "dataset.toml")
SPEC = Path(__file__).resolve().parent.parent / "specs" / "synthetic.toml"

WORDS_BY_GENRE = {
    "adventure": "Lost Rope Jungle Compass Storm Summit Treasure Raft",
    "comedy": "Clumsy Prank Awkward Wedding Banana Parrot Ridiculous Neighbour",
    "cooking": "Salted Oven Garden Soup Sweet Almond Smoky Kitchen",
    "crime": "Silent Witness Stolen Diamond Cold Alibi Crooked Detective",
    "fantasy": "Dragon Throne Enchanted Forest Runic Sword Moonlit Witch",
    "history": "Roman Empire Royal Court Forgotten War Bronze Temple",
    "horror": "Haunted Attic Pale Scream Buried Coffin Crawling Shadow",
    "nature": "Wild Wolf Alpine Meadow Coral Reef Desert Bloom",
    "romance": "Tender Kiss Secret Admirer Summer Heart Distant Promise",
    "science": "Quantum Atom Stellar Orbit Genetic Code Robot Logic",
    "sport": "Final Goal Mountain Cycling Golden Racket Marathon Champion",
    "travel": "Night Train Island Ferry Nomad Road Paris Market",
}
GENRES = list(WORDS_BY_GENRE)
NOUNS = [
    "Notes",
    "Letters",
    "Atlas",
    "Hour",
    "Diary",
    "Guide",
    "Tales",
    "Game",
    "Club",
    "Stories",
    "Dream",
    "Album",
]
BRANDS = [
    a + b
    for a in ("Nor", "Vel", "Ka", "Tri", "Ost", "Bel", "Mir", "Sol")
    for b in ("dane", "vix", "ora", "una")
]
AGE_GROUPS = ["18-24", "25-34", "35-44", "45-54", "55+"]
COUNTRIES = ["US", "DE", "FR", "BR", "IN", "JP", "GB", "PL"]
DEVICES = ["mobile", "desktop", "tablet"]
PAGES = ["home", "search", "deals", "mail"]
HOURLY_TRAFFIC = [3, 2, 1, 1, 1, 2, 4, 6, 7, 6, 5, 5, 7, 6, 5, 5, 6, 7, 9, 11, 12, 12, 9, 6]
EVENT_TYPES = ["view", "like", "purchase"]

MEAN_VIEWS = 5
EVENTS_PER_SESSION = (
    5.5  # measured, so that events_per_user is met; sessions too close to another do not happen
)
SESSION_STARTS_APART_S = 2 * 3600.0


class Events(NamedTuple):
    """The event log as columns of length E, sorted by time: indices, and epoch seconds.

    ``page`` is an index of ``PAGES``, the page where the session began.
    """

    user: Int64Array
    item: Int64Array
    kind: Int64Array
    time: Int64Array
    page: Int64Array


def generate(folder: Path, config: WorldConfig, name: str = "synthetic") -> World:
    """Write the world to ``folder`` as FILES and return it; if it is there already, only load it.

    ``config.json`` is removed first and written last: a run that was killed is repeated. The same
    configuration always gives the same bytes.

    Args:
        folder: where the files go.
        config: size, seed and strengths of the world.
        name: of the data set, in its ``dataset.toml``.

    """
    marker = folder / CONFIG
    settings = _settings(config)
    complete = all((folder / file).is_file() for file in (*FILES, CONFIG))
    if complete and marker.read_text(encoding="utf-8") == settings:
        return World.load(folder / "truth.npz")
    marker.unlink(missing_ok=True)
    world = make_world(config)
    world.save(folder / "truth.npz")
    _write_users(folder / "users.csv", world)
    _write_items(folder / "items.csv", world)
    events = simulate(world, config)
    _write_events(folder / "events.csv", world, events, pages=config.deals is not None)
    spec = SPEC.read_text(encoding="utf-8").replace('name = "synthetic"', f'name = "{name}"')
    write_atomically(folder / "dataset.toml", spec)
    write_atomically(marker, settings)
    return world


def holds_another_world(folder: Path, config: WorldConfig) -> bool:
    """Return whether a finished world of other settings lies in ``folder``."""
    marker = folder / CONFIG
    return marker.is_file() and marker.read_text(encoding="utf-8") != _settings(config)


def _settings(config: WorldConfig) -> str:
    settings = {name: value for name, value in asdict(config).items() if value is not None}
    return json.dumps({"version": VERSION, **settings}, indent=1)


def make_world(config: WorldConfig) -> World:
    """Draw the users, the items and what they are truly like."""
    rng = config.rng("themes")
    centroids = np.repeat(
        _unit(rng.normal(size=(len(GENRES), config.latent_dim))), THEMES_PER_GENRE, axis=0
    )
    themes = _unit(centroids + 0.7 * _unit(rng.normal(size=centroids.shape)))
    rhythm = np.stack(
        [rng.uniform(0.3, 1.7, len(GENRES)) * config.rhythm, rng.uniform(6, 24, len(GENRES))], 1
    )
    items = _make_items(config, themes)
    pull = config.intent * items["item_vectors"] @ themes.T
    return World(
        start=np.array(config.start),
        themes=themes,
        rhythm=rhythm,
        intent_pull=pull,
        **items,
        **_make_users(config),
    )


def _make_users(config: WorldConfig) -> dict[str, Any]:
    rng, n, dim = config.rng("users"), config.users, config.latent_dim
    values = [AGE_GROUPS, COUNTRIES, DEVICES]
    codes = np.stack(
        [rng.choice(len(v), n, p=_shares(1 / np.arange(2, len(v) + 2))) for v in values], 1
    )
    base = np.sqrt(0.3) * rng.normal(size=(n, dim))
    for column, variance in enumerate([0.4, 0.22, 0.08]):
        base += np.sqrt(variance) * rng.normal(size=(len(values[column]), dim))[codes[:, column]]
    weeks = int(np.ceil(config.days / 7)) + 1
    steps = config.drift * rng.normal(size=(n, weeks, dim))
    steps[:, 0] = base
    late = rng.random(n) > 0.55
    return {
        "user_ids": _ids("u", n),
        "joined": np.floor(config.start + late * rng.random(n) * 0.97 * config.days * DAY),
        "activity": rng.lognormal(0, 0.8, n),
        "user_codes": codes,
        "tastes": (steps.cumsum(1) * config.taste / np.sqrt(dim)).astype(np.float32),
        "price_tastes": 0.25 * rng.normal(size=n)
        + np.linspace(-0.5, 0.5, len(AGE_GROUPS))[codes[:, 0]],
    }


def _make_items(config: WorldConfig, themes: Float64Array) -> dict[str, Any]:
    rng, n = config.rng("items"), config.items
    theme = rng.integers(len(themes), size=n)
    genre = theme // THEMES_PER_GENRE
    member = np.eye(len(GENRES), dtype=bool)[genre]
    for share in (0.4, 0.15):
        some = np.flatnonzero(rng.random(n) < share)
        member[some, rng.integers(len(GENRES), size=len(some))] = True
    centroids = themes.reshape(len(GENRES), THEMES_PER_GENRE, -1).mean(1)
    at_home = rng.random(n) < 0.7
    home_brand = genre + len(GENRES) * rng.integers(len(BRANDS) // len(GENRES), size=n)
    brand = np.where(at_home, home_brand, rng.integers(len(BRANDS), size=n))
    brand_vectors = _unit(rng.normal(size=(len(BRANDS), config.latent_dim)))
    noise = _unit(rng.normal(size=(n, config.latent_dim)))
    price = np.exp(2.7 + 0.4 * rng.normal(size=len(GENRES))[genre] + 0.5 * rng.normal(size=n))
    launched = rng.random(n) > 0.7
    born = (
        config.start + np.where(launched, rng.random(n) * 0.97, -rng.random(n)) * config.days * DAY
    )
    first_day = np.maximum(born, config.start)
    gone = first_day + rng.uniform(0.2, 1, n) * (END - first_day)
    return {
        "item_ids": _ids("i", n),
        "item_vectors": _unit(
            themes[theme] + 0.4 * member @ centroids + 0.35 * brand_vectors[brand] + 0.5 * noise
        ),
        "item_genres": member,
        "item_brands": brand,
        "titles": _titles(theme, member, rng),
        "prices": np.round(price, 2),
        "log_popularity": -config.popularity * np.log(1 + rng.permutation(n)),
        "available_from": np.floor(born),
        "available_until": np.where(rng.random(n) < 0.12, np.ceil(gone), np.inf),
    }


def _titles(theme: Int64Array, member: BoolArray, rng: np.random.Generator) -> npt.NDArray[np.str_]:
    """Return titles of a word of the theme, a word of one of the genres and a common noun."""
    words = np.array([text.split() for text in WORDS_BY_GENRE.values()])
    per_theme = words.shape[1] // THEMES_PER_GENRE
    first = theme % THEMES_PER_GENRE * per_theme + rng.integers(per_theme, size=len(theme))
    second = (first + rng.integers(1, words.shape[1], size=len(theme))) % words.shape[1]
    other = np.argmax(member * rng.random(member.shape), axis=1)
    nouns = np.array(NOUNS)[rng.integers(len(NOUNS), size=len(theme))]
    parts = zip(words[theme // THEMES_PER_GENRE, first], words[other, second], nouns, strict=True)
    return np.array([" ".join(part) for part in parts])


def simulate(world: World, config: WorldConfig) -> Events:
    """Let the users live: sessions, in them views, after some of these a like or a purchase."""
    user, start = _sessions(world, config)
    page = config.rng("pages").integers(len(PAGES), size=len(user))
    item, affinity = _choose(world, config, user, start, page=page)
    rng = config.rng("events")
    gaps = np.clip(rng.lognormal(np.log(100), 0.8, item.shape), 5, SESSION_GAP_S).astype(np.int64)
    gaps[:, 0] = 0
    viewed = start.astype(np.int64)[:, None] + gaps.cumsum(1)
    keen = affinity / config.taste
    liked = rng.random(item.shape) < _sigmoid(2.5 * keen - 2.6)
    like_time = viewed + 3 + rng.exponential(25, item.shape).astype(np.int64)
    bought = rng.random(item.shape) < _sigmoid(1.5 * keen + 2.0 * liked - 4.0)
    buy_time = (
        np.where(liked, like_time, viewed) + 20 + rng.exponential(400, item.shape).astype(np.int64)
    )
    columns = []
    for kind, (occurs, time) in enumerate(
        [(item >= 0, viewed), (liked, like_time), (bought, buy_time)]
    ):
        row, rank = np.nonzero(occurs & (item >= 0))
        columns.append(
            np.stack(
                [user[row], item[row, rank], np.full(len(row), kind), time[row, rank], page[row]]
            )
        )
    log = np.concatenate(columns, axis=1)
    log = log[:, (log[3] < END) & (log[3] < world.available_until[log[1]])]
    return Events(*log[:, np.lexsort((log[2], log[1], log[0], log[3]))])


def _sessions(world: World, config: WorldConfig) -> tuple[Int64Array, Float64Array]:
    """Return users [S] and start times [S] of sessions, by user and time, hours apart."""
    rng = config.rng("sessions")
    rate = world.activity * (END - world.joined)
    wanted = config.events_per_user * config.users / EVENTS_PER_SESSION
    user = np.repeat(np.arange(config.users), rng.poisson(wanted * _shares(rate)))
    joined = world.joined[user]
    anytime = joined + rng.random(len(user)) * (END - joined)
    hour = rng.choice(24, len(user), p=_shares(HOURLY_TRAFFIC)) + rng.random(len(user))
    usual = anytime - anytime % DAY + hour * 3600
    time = np.floor(np.where((usual >= joined) & (usual < END), usual, anytime))
    order = np.lexsort((time, user))
    user, time = user[order], time[order]
    apart = np.append(True, (np.diff(user) > 0) | (np.diff(time) > SESSION_STARTS_APART_S))[
        : len(user)
    ]
    return user[apart], time[apart]


def _choose(
    world: World,
    config: WorldConfig,
    user: Int64Array,
    start: Float64Array,
    *,
    page: Int64Array,
) -> tuple[Int64Array, Float64Array]:
    """Return the items that each session views, in order, and their affinities.

    Both are [S, MAX_VIEWS]; items are -1 after the last view.
    """
    rng = config.rng("choices")
    price = np.log(world.prices)
    dear = (price - price.mean()) / max(price.std(), 1e-9)
    deals = PAGES.index("deals")
    length = np.minimum(rng.geometric(1 / MEAN_VIEWS, len(user)), MAX_VIEWS)
    chosen, liking = np.full((len(user), MAX_VIEWS), -1), np.zeros((len(user), MAX_VIEWS))
    seen = np.zeros((config.users, config.items), np.uint8)
    for rows in _rounds(user):
        who, when = user[rows], start[rows]
        intents = world.intents(who, when)
        intent = np.argmax(intents - np.log(rng.standard_exponential(intents.shape)), axis=1)
        affinity = world.affinity(who, when)
        keys = (
            affinity + world.appeal(when) + world.intent_pull.T[intent] - REPEAT_PENALTY[seen[who]]
        )
        keys -= (config.deals or 0.0) * np.outer(page[rows] == deals, dear)
        keys -= np.log(rng.standard_exponential(keys.shape))
        top = np.argpartition(-keys, MAX_VIEWS - 1, axis=1)[:, :MAX_VIEWS]
        top = np.take_along_axis(top, np.argsort(-np.take_along_axis(keys, top, 1), axis=1), 1)
        valid = np.isfinite(np.take_along_axis(keys, top, 1)) & (
            np.arange(MAX_VIEWS) < length[rows, None]
        )
        chosen[rows] = np.where(valid, top, -1)
        liking[rows] = np.take_along_axis(affinity, top, 1)
        seen[np.broadcast_to(who[:, None], top.shape)[valid], top[valid]] += 1
    return chosen, liking


def _rounds(user: Int64Array, size: int = 512) -> Iterator[Int64Array]:
    """Yield batches of session rows: everybody's first session, then everybody's second one, ..."""
    nth = np.arange(len(user)) - np.searchsorted(user, user)
    order = np.argsort(nth, kind="stable")
    for one in np.split(order, np.cumsum(np.bincount(nth))[:-1]):
        yield from (one[at : at + size] for at in range(0, len(one), size))


def _write_users(path: Path, world: World) -> None:
    age, country, device = world.user_codes.T
    columns = np.array(AGE_GROUPS)[age], np.array(COUNTRIES)[country], np.array(DEVICES)[device]
    _write_csv(
        path,
        ["user_id", "age_group", "country", "device"],
        zip(world.user_ids, *columns, strict=True),
    )


def _write_items(path: Path, world: World) -> None:
    genres = ["|".join(GENRES[g] for g in np.flatnonzero(row)) for row in world.item_genres]
    brands = np.array(BRANDS)[world.item_brands]
    prices = [f"{price:.2f}" for price in world.prices]
    dates = _iso(world.available_from), _iso(world.available_until)
    header = ["item_id", "title", "genre", "brand", "price", "available_from", "available_until"]
    _write_csv(
        path, header, zip(world.item_ids, world.titles, genres, brands, prices, *dates, strict=True)
    )


def _write_events(path: Path, world: World, events: Events, *, pages: bool) -> None:
    names = np.array(EVENT_TYPES)[events.kind]
    values = [
        f"{p:.2f}" if k == 2 else ""
        for p, k in zip(world.prices[events.item], events.kind, strict=True)
    ]
    users, items = np.array(world.user_ids)[events.user], np.array(world.item_ids)[events.item]
    header = ["event_id", "user_id", "item_id", "event_type", "timestamp", "value"]
    columns = [_ids("e", len(values)), users, items, names, _iso(events.time), values]
    if pages:
        header.append("page")
        columns.append(np.array(PAGES)[events.page])
    _write_csv(path, header, zip(*columns, strict=True))


def _write_csv(path: Path, header: list[str], rows: Iterable[Sequence[str]]) -> None:
    write_atomically(path, "".join(",".join(row) + "\n" for row in (header, *rows)))


def _iso(time: npt.NDArray[Any]) -> list[str]:
    """Return epoch seconds as ISO 8601 in UTC, and nothing for infinity."""
    known = np.where(np.isfinite(time), time, 0).astype("datetime64[s]")
    return [
        str(t)
        for t in np.where(np.isfinite(time), np.datetime_as_string(known, timezone="UTC"), "")
    ]


def _ids(letter: str, count: int) -> list[str]:
    width = max(4, len(str(count)))
    return [f"{letter}{number:0{width}d}" for number in range(1, count + 1)]


def _unit(vectors: Float64Array) -> Float64Array:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _shares(weights: npt.ArrayLike) -> Float64Array:
    return np.asarray(weights / np.sum(weights), dtype=np.float64)


def _sigmoid(x: Float64Array) -> Float64Array:
    return 1 / (1 + np.exp(-x))
