"""``funnel replay``: sends a data set's events to the public API, at their own pace or faster.

An event's id is ``<run>:<its own id>``. The API remembers ids for at least a day, so a replay that
was stopped is continued by starting it again with the same run name: events that were accepted
before are answered as duplicates. For the same reason a request without an answer is sent again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec, SpecError
from feature_repo.errors import FunnelError
from feature_repo.progress import Progress, no_progress
from feature_repo.settings import read_settings
from pipelines.ingest.identity import KnownEvents, in_file_order
from pipelines.ingest.parsing import event_columns, optional_columns, parse_events
from pipelines.ingest.readers import find_files, read_file

_TIMEOUT_S = 30.0
_MAX_WAIT_S = 60.0
_RETRY_STATUSES = {429, 502, 503, 504}

"""Called with what is done, how many events of it are done, and how many there are."""


class ReplayFailed(FunnelError):
    """The API refused a request or did not answer; the message says how to continue."""


@dataclass(frozen=True)
class ReplayConfig:
    """Where and how fast to send.

    Attributes:
        url: the API.
        run: name of the replay, the beginning of each event id.
        speed: seconds of the data per second; 0: as fast as possible.
        batch: maximum events per request.
        patience_s: how long the API may be unreachable or overloaded before the replay fails.

    """

    url: str
    run: str
    speed: float = 1.0
    batch: int = 100
    patience_s: float = 600.0

    def __post_init__(self) -> None:
        """Refuse a URL that can never work."""
        if not self.url.startswith(("http://", "https://")):
            raise ReplayFailed(f"--url {self.url}: must begin with http:// or https://")


@dataclass
class Tally:
    """Counts of the events sent; one accepted by a request without an answer is a duplicate."""

    sent: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    seconds: float = 0.0
    events_per_s: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return the numbers, rounded."""
        numbers = {name: value for name, value in asdict(self).items() if name != "reasons"}
        return numbers | {
            "seconds": round(self.seconds, 3),
            "events_per_s": round(self.events_per_s, 1),
        }


def load_events(spec: DatasetSpec, folder: Path, limit: int | None = None) -> pd.DataFrame:
    """Return the first valid events of a data set's files, in time order (ties as in the files).

    Raises:
        SpecError: a file or column that the spec names is missing, or no event is valid.

    """
    latest = pd.Timestamp.now(tz="UTC") + pd.Timedelta(days=1)
    known = KnownEvents()
    optional = optional_columns(spec)
    frames = []
    for path in find_files(spec.events, folder):
        raw = read_file(path, spec.events, event_columns(spec), optional=optional)
        frames.append(parse_events(spec, raw, latest, known).valid)
    events = pd.concat(frames, ignore_index=True)
    if events.empty:
        raise SpecError(f"no usable event in {folder}: see what 'funnel ingest' puts in quarantine")
    events = in_file_order(events)
    return events.sort_values([c.TIMESTAMP, c.EVENT_ID], kind="stable", ignore_index=True).head(
        limit or len(events)
    )


def replay(events: pd.DataFrame, config: ReplayConfig, progress: Progress = no_progress) -> Tally:
    """Send events in their order, each when it is due.

    An event is due at the start plus its distance from the first event, divided by the speed. All
    events that are due go in one request. An event's timestamp is the time at which it is due; with
    ``speed`` 0, the time at which it is sent.

    Args:
        events: the result of ``load_events``.
        config: where and how fast to send.
        progress: called after each request.

    Raises:
        ReplayFailed: the API refused a request or did not answer.

    """
    tally = Tally()
    start = time.time()
    started = time.monotonic()
    due = _due(events[c.TIMESTAMP], config.speed)
    key = read_settings().key
    headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
    with httpx.Client(base_url=config.url, timeout=_TIMEOUT_S, headers=headers) as client:
        for first, last in _batches(due, config, started):
            timestamps = start + due[first:last] if config.speed else _now(last - first)
            body = {"events": _bodies(events.iloc[first:last], timestamps, config.run)}
            answer = _send(client, body, config)
            tally.sent += last - first
            tally.accepted += answer["accepted"]
            tally.duplicates += answer["duplicates"]
            tally.rejected += len(answer["rejected"])
            for refused in answer["rejected"]:
                tally.reasons[refused["reason"]] = tally.reasons.get(refused["reason"], 0) + 1
            progress(f"{tally.accepted} accepted", tally.sent, len(events))
    tally.seconds = time.monotonic() - started
    tally.events_per_s = tally.sent / max(tally.seconds, 1e-9)
    return tally


def _due(times: pd.Series, speed: float) -> np.ndarray:
    """Return when each event is due, in seconds from the start."""
    seconds: np.ndarray = (times - times.iloc[0]).dt.total_seconds().to_numpy()
    return seconds / speed if speed else np.zeros(len(seconds))


def _batches(due: np.ndarray, config: ReplayConfig, started: float) -> Iterator[tuple[int, int]]:
    """Yield the bounds of the events that are due, as soon as there are any."""
    first = 0
    while first < len(due):
        elapsed = time.monotonic() - started
        if due[first] > elapsed:
            time.sleep(due[first] - elapsed)
            continue
        last = min(int(np.searchsorted(due, elapsed, side="right")), first + config.batch)
        yield first, last
        first = last


def _now(count: int) -> np.ndarray:
    """Return present times a microsecond apart, so that the events keep their order."""
    return time.time() + np.arange(count) * 1e-6


def _bodies(events: pd.DataFrame, timestamps: np.ndarray, run: str) -> list[dict[str, Any]]:
    columns = (events[name].tolist() for name in (c.EVENT_ID, c.USER, c.ITEM, c.TYPE, c.VALUE))
    bodies = []
    rows = zip(timestamps.tolist(), *columns, strict=True)
    for timestamp, event_id, user, item, kind, value in rows:
        body = {
            "event_id": f"{run}:{event_id}",
            "user_id": user,
            "item_id": item,
            "type": kind,
            "timestamp": timestamp,
        }
        bodies.append(body if value != value else body | {"value": value})  # NaN: no value
    return bodies


def _send(client: httpx.Client, body: dict[str, Any], config: ReplayConfig) -> dict[str, Any]:
    """Post a request until it is answered; the same events, with the same ids, each time."""
    deadline = time.monotonic() + config.patience_s
    while True:
        try:
            response = client.post("/v1/events", json=body)
        except httpx.TransportError as error:
            problem = f"{type(error).__name__}: {error}"
            wait_s = 1.0
        else:
            if response.status_code == 202:
                return dict(response.json())
            problem = f"{response.status_code} {response.text[:200]}"
            wait_s = _retry_after(response)
            if response.status_code not in _RETRY_STATUSES:
                raise ReplayFailed(
                    f"the API refused a request ({problem}); {_how_to_continue(config)}"
                )
        if time.monotonic() + wait_s > deadline:
            raise ReplayFailed(
                f"no answer for {config.patience_s:.0f} s ({problem}); {_how_to_continue(config)}"
            )
        time.sleep(wait_s)


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds of an answer's ``Retry-After``, 1 if it has none or a date."""
    try:
        return min(max(float(response.headers.get("Retry-After", 1.0)), 0.0), _MAX_WAIT_S)
    except ValueError:
        return 1.0


def _how_to_continue(config: ReplayConfig) -> str:
    return f"continue with --run {config.run}"


def run_replay(
    data: str, data_dir: Path | None, config: ReplayConfig, limit: int | None
) -> dict[str, Any]:
    """Replay a data set's files, and return the summary.

    Raises:
        SpecError: the data set is unknown, or its files are missing.
        ReplayFailed: the API refused a request or did not answer.

    """
    from pipelines import display
    from pipelines.workflow.data_sets import find_spec

    spec = find_spec(data)
    if data_dir is None:
        if not data.endswith(".toml"):
            raise SpecError(f"'{data}' needs its files: give --data-dir")
        data_dir = Path(data).resolve().parent
    events = load_events(spec, data_dir, limit)
    display.console.print(f"Replay of {len(events)} events, run {config.run}")
    with display.stage("Replay") as progress:
        tally = replay(events, config, progress)
    if tally.reasons:
        rows = [[reason, count] for reason, count in sorted(tally.reasons.items())]
        display.table("Rejected", ["", "events"], rows)
    return tally.summary()
