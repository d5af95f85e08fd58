"""The proof of an erasure: what was found in each storage location, and what is left.

A proof is the file ``erasures/<number>.json``; it names nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from feature_repo.erased import ERASED, PENDING, ErasedUsers
from feature_repo.events.log_names import KafkaAddress, log_address
from feature_repo.files import read_json
from pipelines.erasure.redis import CLEAN

NOT_SEARCHED = {
    "source files": (
        "files outside of the working folder: remove the user there; ingest leaves the rows out"
    ),
    "outputs": "files written by 'funnel batch --out': write them again",
    "backups": "copies of the working folder or of Redis, and its snapshots",
    "models": (
        "weights that were trained on the events of all users, until the next 'funnel train'"
    ),
    "counts": (
        "numbers of events by item, until the next 'funnel features' and 'funnel materialize'"
    ),
    "mlflow": "settings and figures of training runs; no ids are written there",
}
"""Where an erasure does not search, and why."""

_REDIS_FILE = "append-only file of Redis"
_KAFKA = "events in a topic stay for its retention time; the streaming job writes none of them"

SearchResult = Counter[str] | str
"""The rows of each user in one storage location, or why it could not be searched."""


class LocationCounts(BaseModel):
    """Rows of an erased user in one storage location; ``remaining`` is None if it is unknown."""

    model_config = ConfigDict(frozen=True)

    found: int = 0
    removed: int = 0
    remaining: int | None = None

    def with_found(self, count: int) -> LocationCounts:
        """Return the counts after a search before the removal; a killed run may have found more."""
        return self.model_copy(update={"found": max(self.found, self.removed + count)})

    def settled(self, remaining: int | None) -> LocationCounts:
        """Return the counts after the removal and a second search."""
        if remaining is None:
            return self.model_copy(update={"remaining": None})
        found = max(self.found, self.removed + remaining)
        return LocationCounts(found=found, removed=found - remaining, remaining=remaining)


class RunOutcome(BaseModel):
    """What a run did beside removing rows.

    Attributes:
        redis_file: how the rewrite of Redis' append-only file ended.
        unfinished_files_removed: temporary files of killed processes that were removed.
        damaged_files_removed: files that nobody can read and that were removed for that.
        version: version of the code.

    """

    model_config = ConfigDict(frozen=True)

    redis_file: str
    unfinished_files_removed: int = 0
    damaged_files_removed: int
    version: str


class ErasureProof(BaseModel):
    """The file of one erasure.

    Attributes:
        erasure: the number of the erasure, the beginning of ``digest``.
        asked_at: when the erasure was asked for, ISO 8601.
        state: ``pending`` until every location was searched, nothing is left, and Redis has
            rewritten its file.
        digest: keyed digest of the user's id.
        places: counts by storage location.
        problems: why a location could not be searched or cleaned, by location.
        not_searched: what is not searched, and why.
        redis_file: see ``RunOutcome``.
        unfinished_files_removed: see ``RunOutcome``.
        damaged_files_removed: see ``RunOutcome``.
        version: see ``RunOutcome``.
        checked_at: when the last run ended, ISO 8601.

    """

    model_config = ConfigDict(frozen=True, extra="allow")

    erasure: str
    asked_at: str
    state: Literal["pending", "erased"]
    digest: str = ""
    places: dict[str, LocationCounts] = {}
    problems: dict[str, str] = {}
    not_searched: dict[str, str] = {}
    redis_file: str | None = None
    unfinished_files_removed: int | None = None
    damaged_files_removed: int | None = None
    version: str | None = None
    checked_at: str | None = None

    @property
    def remaining(self) -> set[str]:
        """The locations in which something is left."""
        return {location for location, counts in self.places.items() if counts.remaining}

    def counts(self, location: str) -> LocationCounts:
        """Return the counts of a location, zero if it was not searched yet."""
        return self.places.get(location, LocationCounts(found=0, removed=0))


class Proofs:
    """The proofs of all erasures on the list, during one run."""

    def __init__(self, erased: ErasedUsers) -> None:
        self._erased = erased

    def begin(self, found: dict[str, SearchResult]) -> None:
        """Store what was found before anything is removed, so that a killed run loses no count."""
        for number, counts in self._by_number(found).items():
            with self._erased.editing(number) as stored:
                proof = ErasureProof.model_validate(stored)
                places = proof.places | {
                    location: proof.counts(location).with_found(count)
                    for location, count in counts.items()
                }
                proof = proof.model_copy(update={"state": PENDING, "places": places})
                stored.update(proof.model_dump(exclude_unset=True))

    def finish(
        self, left: dict[str, SearchResult], requested: Collection[str], outcome: RunOutcome
    ) -> list[ErasureProof]:
        """Write and return the proofs of erasures that are pending, requested or not complete.

        Args:
            left: the result of the search after the removal.
            requested: numbers of erasures whose proof is returned in any case.
            outcome: what the run did.

        """
        remaining = self._by_number(left)
        problems = {place: reason for place, reason in left.items() if isinstance(reason, str)}
        unsearched = set(problems)
        if outcome.redis_file not in CLEAN:
            problems[_REDIS_FILE] = outcome.redis_file
        proofs = []
        for number in sorted(self._erased.numbers()):
            if self._is_done(number) and number not in requested and number not in remaining:
                continue
            counts = remaining.get(number, {})
            with self._erased.editing(number) as stored:
                proof = ErasureProof.model_validate(stored)
                places = proof.places | {
                    location: proof.counts(location).settled(
                        None if location in unsearched else counts.get(location, 0)
                    )
                    for location in left
                }
                update = outcome.model_dump() | {
                    "places": places,
                    "problems": problems,
                    "not_searched": _not_searched(),
                    "state": PENDING if problems or counts else ERASED,
                    "checked_at": datetime.now(UTC).isoformat(timespec="seconds"),
                }
                proof = proof.model_copy(update=update)
                stored.update(proof.model_dump(exclude_unset=True))
            proofs.append(proof)
        return proofs

    def _is_done(self, number: str) -> bool:
        path = self._erased.proof(number)
        return path.is_file() and read_json(path)["state"] == ERASED

    def _by_number(self, found: dict[str, SearchResult]) -> dict[str, dict[str, int]]:
        """Return the counts by erasure and location."""
        counts: dict[str, dict[str, int]] = {}
        for location, result in found.items():
            users: Iterable[tuple[str, int]] = () if isinstance(result, str) else result.items()
            for user, count in users:
                counts.setdefault(self._erased.number(user), {})[location] = count
        return counts


def _not_searched() -> dict[str, str]:
    return NOT_SEARCHED | ({"kafka": _KAFKA} if isinstance(log_address(), KafkaAddress) else {})
