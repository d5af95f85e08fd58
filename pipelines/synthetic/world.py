"""The true preferences of the synthetic world's users, and the best forecast that they permit.

An event happens because of the user's taste (which the user's attributes hint at and which drifts
from week to week), the item's popularity and novelty, the hour of the day and the session's intent.
Each session draws an intent among the themes and then its items, without replacement, by a softmax
choice repeated, with the preferences of its start (``pipelines.synthetic.generate`` does
it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_repo.arrays import BoolArray, Float32Array, Float64Array, Int64Array
from feature_repo.files import write_atomically

DAY = 86_400.0
WEEK = 7 * DAY
END = 1_719_705_600.0
"""The world's end: 2024-06-30 00:00 UTC, epoch seconds."""

THEMES_PER_GENRE = 4
MAX_VIEWS = 15
SESSION_GAP_S = 1200
"""Views of a user that are more seconds apart belong to different sessions.

Views of one session are closer, unless one between them was dropped because its item had gone.
Sessions of a user start two hours apart, so the log splits into sessions without error.
"""

REPEAT_PENALTY = np.array([0.0, 4.0, np.inf])
"""Utility that an item loses when the user has viewed it never, once, twice."""

CHUNK = 512
NOTHING: Int64Array = np.zeros(0, np.int64)


@dataclass(frozen=True)
class WorldConfig:
    """Size, random seed and strength of preferences of a world.

    ``events_per_user`` is a mean over all users, met approximately. Strengths scale log-utilities:
    ``taste`` by the match of user and item, ``intent`` by the match of session and item,
    ``popularity`` is the Zipf exponent, ``rhythm`` the swing with the hour of the day; ``drift`` is
    a week's step of the taste (whose norm is about one). ``deals``: by how much a dear item loses
    on the page of deals; None: events have no page.

    Raises:
        ValueError: a size is too small to make a world of.

    """

    users: int = 3000
    items: int = 2000
    days: int = 120
    seed: int = 7
    events_per_user: float = 75.0
    latent_dim: int = 16
    taste: float = 7.0
    intent: float = 6.0
    popularity: float = 0.8
    rhythm: float = 0.6
    drift: float = 0.12
    deals: float | None = None

    def __post_init__(self) -> None:
        if (
            min(self.users, self.days, self.latent_dim) < 1
            or self.items < MAX_VIEWS
            or self.events_per_user <= 0
        ):
            raise ValueError(
                f"a world needs users, days, events and at least {MAX_VIEWS} items: {self}"
            )

    @property
    def start(self) -> float:
        """The world's start, epoch seconds."""
        return END - self.days * DAY

    def rng(self, purpose: str) -> np.random.Generator:
        """Return the random stream of one part of the world: parts do not disturb each other."""
        return np.random.default_rng([self.seed, *purpose.encode()])


FULL = WorldConfig()
"""The world of all published figures of the built-in data: its files are frozen, byte for byte."""

SMALL = WorldConfig(users=700, items=500, days=60, events_per_user=60.0, deals=0.0)
"""The world of the demo: small enough to be trained in a minute."""

BUILT_IN = {"synthetic": SMALL, "synthetic-full": FULL}
"""The built-in worlds by the name of their data set."""


@dataclass(frozen=True, eq=False)
class World:
    """The true preferences of U users for I items with G genres and K themes in D dimensions.

    All times are epoch seconds, all codes those of ``pipelines.synthetic.generate``. ``tastes`` are
    known at W week boundaries and linear in between.
    """

    user_ids: list[str]  # U external ids
    item_ids: list[str]  # I external ids
    start: Float64Array  # [] epoch seconds
    joined: Float64Array  # [U] no event of a user comes earlier
    activity: Float64Array  # [U] relative number of sessions a day
    user_codes: Int64Array  # [U, 3] indices into AGE_GROUPS, COUNTRIES, DEVICES
    tastes: Float32Array  # [U, W, D] scaled by the strength of taste
    price_tastes: Float64Array  # [U] log-utility per standard deviation of log-price
    item_vectors: Float64Array  # [I, D] of norm one
    item_genres: BoolArray  # [I, G]
    item_brands: Int64Array  # [I] indices into BRANDS
    titles: npt.NDArray[np.str_]  # [I]
    prices: Float64Array  # [I]
    log_popularity: Float64Array  # [I] log-utility common to all users
    available_from: Float64Array  # [I] start of availability
    available_until: Float64Array  # [I] end of availability; inf where there is none
    themes: Float64Array  # [K, D] of norm one; theme k belongs to genre k // THEMES_PER_GENRE
    intent_pull: Float64Array  # [I, K] log-utility that a session with the intent of theme k adds
    rhythm: Float64Array  # [G, 2] swing in log-utility and favourite hour (UTC)

    def affinity(self, user: Int64Array, time: Float64Array) -> Float64Array:
        """Return [B, I] log-utilities that are the user's own: taste and price."""
        log_price = np.log(self.prices)
        log_price = (log_price - log_price.mean()) / log_price.std()
        affinity: Float64Array = (
            self._taste(user, time) @ self.item_vectors.T
            + self.price_tastes[user, None] * log_price
        )
        return affinity

    def appeal(self, time: Float64Array) -> Float64Array:
        """Return [B, I] log-utilities that all users share; -inf for unavailable items."""
        now = time[:, None]
        novelty = 0.8 * np.exp(-np.maximum(now - self.available_from, 0) / (10 * DAY))
        genres = self.item_genres / self.item_genres.sum(1, keepdims=True)
        appeal: Float64Array = self.log_popularity + novelty + self._hour(time) @ genres.T
        appeal[(now < self.available_from) | (now >= self.available_until)] = -np.inf
        return appeal

    def intents(self, user: Int64Array, time: Float64Array) -> Float64Array:
        """Return [B, K] log-probabilities of a session's intent."""
        logits: Float64Array = 0.8 * self._taste(user, time) @ self.themes.T
        logits += np.repeat(self._hour(time), THEMES_PER_GENRE, axis=1)
        logits -= np.log(np.exp(logits).sum(1, keepdims=True))
        return logits

    def utilities(self, user: Int64Array, time: Float64Array) -> Float32Array:
        """Return [B, I] log-probabilities of a session's first view, its intent summed out exactly.

        ``user`` [B] holds indices into ``user_ids``, ``time`` [B] unshifted epoch seconds. What the
        user has already seen is not considered; items not available at that time have -inf.
        """
        return self.session_utilities(user, time, [NOTHING] * len(user))

    def session_utilities(
        self,
        user: Int64Array,
        time: Float64Array,
        earlier: Sequence[Int64Array],
        before: Sequence[Int64Array] | None = None,
    ) -> Float32Array:
        """Return [B, I] log-probabilities of the next view, given the earlier views of its session.

        The session's intent is inferred from these views by Bayes' rule and summed out, both with
        the model by which the events were drawn: softmax choices without replacement, preferences
        as they are when the session starts. With ``before`` given, nothing that knows a user's
        views and the true tastes can rank the next one better on average.

        Args:
            user: [B] indices into ``user_ids``.
            time: [B] unshifted epoch seconds of the session's start, which is its first view. The
                time of a later view differs by minutes, which hardly matters.
            earlier: B arrays of item indices viewed earlier in the session, oldest first. They are
                not viewed again and have -inf, as have items not available at that time.
            before: B arrays of item indices viewed in earlier sessions, one entry a view; such
                items lose REPEAT_PENALTY. By default these views are not considered.

        """
        listed = _padded(earlier)
        repeats = None if before is None else _padded(before)
        result = np.empty((len(user), len(self.item_ids)), np.float32)
        for at in range(0, len(user), CHUNK):
            rows = slice(at, at + CHUNK)
            logits = self.affinity(user[rows], time[rows]) + self.appeal(time[rows])
            if repeats is not None:
                logits -= REPEAT_PENALTY[np.minimum(_counts(repeats[rows], logits.shape[1]), 2)]
            result[rows] = self._next_view(
                logits, self.intents(user[rows], time[rows]), listed[rows]
            )
        return result

    def _next_view(
        self, logits: Float64Array, intents: Float64Array, earlier: Int64Array
    ) -> Float64Array:
        """Return [B, I] log-probabilities under the Plackett-Luce model.

        ``earlier`` [B, L] is padded with -1. The items left to choose from are summed from the last
        view back, so that nothing cancels.
        """
        weight = np.exp(logits - logits.max(1, initial=-1e300, keepdims=True))
        taken = np.take_along_axis(weight, np.maximum(earlier, 0), axis=1)
        row, rank = np.nonzero(earlier >= 0)
        weight[row, earlier[row, rank]] = 0
        pull = np.exp(self.intent_pull)
        left = left_now = np.maximum(weight @ pull, 1e-300)
        for item, chosen in zip(earlier.T[::-1], taken.T[::-1], strict=True):
            known = (item >= 0)[:, None]
            left = left + known * chosen[:, None] * pull[item]
            intents = intents + known * (self.intent_pull[item] - np.log(left))
        posterior = np.exp(intents - intents.max(1, keepdims=True))
        posterior /= posterior.sum(1, keepdims=True)
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(weight * ((posterior / left_now) @ pull.T)))

    def save(self, path: Path) -> None:
        """Write all arrays to an uncompressed ``.npz`` without pickles."""
        arrays: dict[str, Any] = {
            field.name: np.asarray(getattr(self, field.name)) for field in fields(self)
        }
        with BytesIO() as file:
            np.savez(file, **arrays)
            write_atomically(path, file.getvalue())

    @classmethod
    def load(cls, path: Path) -> World:
        """Read what ``save`` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            content: dict[str, Any] = {field.name: arrays[field.name] for field in fields(cls)}
        return cls(**content | {name: content[name].tolist() for name in ("user_ids", "item_ids")})

    def _taste(self, user: Int64Array, time: Float64Array) -> Float64Array:
        week = np.clip((time - self.start) / WEEK, 0, self.tastes.shape[1] - 1)
        before = np.minimum(week.astype(np.int64), self.tastes.shape[1] - 2)
        part = (week - before)[:, None]
        taste: Float64Array = (
            self.tastes[user, before] * (1 - part) + self.tastes[user, before + 1] * part
        )
        return taste

    def _hour(self, time: Float64Array) -> Float64Array:
        swing, favourite = self.rhythm.T
        return np.asarray(swing * np.cos(2 * np.pi * (time[:, None] % DAY / 3600 - favourite) / 24))


def _padded(lists: Sequence[Int64Array]) -> Int64Array:
    """Return the lists as rows [B, L], filled up with -1."""
    length = np.array([len(one) for one in lists], np.int64)
    padded = np.full((len(lists), length.max(initial=0)), -1)
    padded[np.arange(padded.shape[1]) < length[:, None]] = np.concatenate([NOTHING, *lists])
    return padded


def _counts(listed: Int64Array, items: int) -> Int64Array:
    """Return how often [B, I] each item occurs in its row of ``listed``, which -1 fills up."""
    row, rank = np.nonzero(listed >= 0)
    counts = np.bincount(row * items + listed[row, rank], minlength=len(listed) * items)
    return counts.reshape(len(listed), items)
