"""API keys: created, rotated and revoked in one file, which a running server follows.

A key is shown once, as ``fk_<id>_<secret>``; the file knows only the SHA-256 of the secret.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from feature_repo.errors import FunnelError
from feature_repo.files import locked, write_json

GRACE = timedelta(hours=24)
"""How long the old key of a rotation stays valid."""

_PREFIX = "fk"
_TRUSTED_S = 10.0
"""How long keys outlast damage to their file after the file was last found unchanged."""
_log = logging.getLogger(__name__)


class BadKeys(FunnelError):
    """The file of keys is missing or damaged."""


class UnknownKey(FunnelError):
    """The file has no key with the id; the message does not repeat what may be a whole key."""


class Scope(StrEnum):
    """What a key may do; ``admin`` may do everything."""

    RECOMMEND = "recommend"
    EVENTS = "events"
    ADMIN = "admin"


class Key(BaseModel):
    """A key as it is stored; ``rate_limit`` is in requests a second."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
    # A slow, salted hash protects what people choose; nobody guesses 256 random bits, however fast
    # the hash.
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    name: Annotated[str, Field(min_length=1, max_length=100)]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    rate_limit: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    def expired(self, now: datetime) -> bool:
        """Return whether the key has expired."""
        return self.expires_at is not None and self.expires_at <= now


class Created(NamedTuple):
    """A new key: its text, which is not stored, and what is stored."""

    text: str
    key: Key


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: list[Key]


def create(
    path: Path,
    name: str,
    scopes: Collection[Scope],
    *,
    expires_at: datetime | None = None,
    rate_limit: float | None = None,
) -> Created:
    """Make a key and add it to the file, which is made if need be.

    Raises:
        BadKeys: the file is damaged.

    """
    with _editing(path) as keys:
        return _add(keys, name, scopes, expires_at=expires_at, rate_limit=rate_limit)


def revoke(path: Path, key_id: str) -> Key:
    """Remove a key; servers refuse it within a second or so.

    Raises:
        BadKeys: the file is damaged.
        UnknownKey: it has no such key.

    """
    with _editing(path) as keys:
        return keys.pop(_known(keys, key_id).id)


def rotate(path: Path, key_id: str, grace: timedelta = GRACE) -> Created:
    """Make a key with the old one's scopes and lifetime; the old one expires after ``grace``.

    Raises:
        BadKeys: the file is damaged.
        UnknownKey: it has no such key.

    """
    with _editing(path) as keys:
        old = _known(keys, key_id)
        now = datetime.now(UTC)
        expires_at = now + (old.expires_at - old.created_at) if old.expires_at else None
        last = min(now + grace, old.expires_at or datetime.max.replace(tzinfo=UTC))
        keys[old.id] = old.model_copy(update={"expires_at": last})
        return _add(keys, old.name, old.scopes, expires_at=expires_at, rate_limit=old.rate_limit)


def read_keys(path: Path) -> list[Key]:
    """Return the keys of a file, oldest first.

    Raises:
        BadKeys: the file is missing or damaged.

    """
    try:
        keys = _File.model_validate_json(path.read_bytes()).keys
    except OSError as error:
        raise BadKeys(f"cannot read the API keys in {path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BadKeys(f"the API keys in {path} are damaged: {where}: {first['msg']}") from None
    if len({key.id for key in keys}) < len(keys):
        raise BadKeys(f"the API keys in {path} are damaged: two of them have the same id")
    return sorted(keys, key=lambda key: key.created_at)


class KeyRing:
    """The keys of a file, read again when it changes: no key needs a restart.

    A file that cannot be read changes nothing for a process that has just confirmed its keys. Where
    the last confirmation is older, or was another process's, a key may have been revoked since:
    then no key is valid until the file can be read.
    """

    def __init__(self, path: Path, check_every_s: float = 1.0) -> None:
        """Read the file; ``check_every_s``: seconds between checks for a change.

        Raises:
            BadKeys: it is missing or damaged.

        """
        self._path = path
        self._check_every_s = check_every_s
        self._stamp = self._file_stamp()
        self._keys = {key.id: key for key in read_keys(path)}
        self._readable = True
        self._process = os.getpid()
        self._checked = self._confirmed = time.monotonic()

    def find(self, text: str) -> Key | None:
        """Return the valid key that a text is, or None; the time it takes tells nothing of why."""
        self._follow()
        prefix, _, rest = text.partition("_")
        key_id, _, secret = rest.partition("_")
        key = self._keys.get(key_id)
        same = hmac.compare_digest(_hash(secret), key.sha256 if key else _NOBODY)
        return (
            key
            if key and same and prefix == _PREFIX and not key.expired(datetime.now(UTC))
            else None
        )

    def _follow(self) -> None:
        """Read the file again if it is another one."""
        now = time.monotonic()
        forked = os.getpid() != self._process
        if now - self._checked < self._check_every_s and not forked:
            return
        self._checked = now
        self._process = os.getpid()
        stamp = self._file_stamp()
        if stamp != self._stamp or (forked and not self._readable):
            self._stamp = stamp
            self._read(trusted=not forked and now - self._confirmed < _TRUSTED_S)
        if self._readable:
            self._confirmed = now

    def _read(self, *, trusted: bool) -> None:
        """Read the file; if that fails, keep the present keys if they are trusted, else none."""
        try:
            self._keys = {key.id: key for key in read_keys(self._path)}
            self._readable = True
        except BadKeys as error:
            self._readable = False
            if trusted:
                _log.error("the API keys stay as they were: %s", error)
                return
            self._keys = {}
            _log.error("no API key can be confirmed, so all are refused: %s", error)

    def _file_stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


_NOBODY = _hash(secrets.token_urlsafe(32))


def _add(
    keys: dict[str, Key],
    name: str,
    scopes: Iterable[Scope],
    *,
    expires_at: datetime | None,
    rate_limit: float | None,
) -> Created:
    key_id = secrets.token_hex(4)
    while key_id in keys:
        key_id = secrets.token_hex(4)
    secret = secrets.token_urlsafe(32)
    key = keys[key_id] = Key(
        id=key_id,
        sha256=_hash(secret),
        name=name,
        scopes=tuple(sorted(set(scopes))),
        created_at=datetime.now(UTC),
        expires_at=expires_at,
        rate_limit=rate_limit,
    )
    return Created(f"{_PREFIX}_{key_id}_{secret}", key)


def _known(keys: dict[str, Key], key_id: str) -> Key:
    if key_id not in keys:
        raise UnknownKey("there is no key with this id: see 'funnel keys list'")
    return keys[key_id]


@contextmanager
def _editing(path: Path) -> Iterator[dict[str, Key]]:
    """Yield the keys by id, for one writer at a time; what the block makes of them is written."""
    with locked(path.with_name(f".{path.name}.lock")):
        keys = {key.id: key for key in read_keys(path)} if path.exists() else {}
        yield keys
        _write(path, keys.values())


def _write(path: Path, keys: Iterable[Key]) -> None:
    values = [key.model_dump(mode="json", exclude_none=True) for key in keys]
    write_json(path, {"keys": values}, mode=0o600)
