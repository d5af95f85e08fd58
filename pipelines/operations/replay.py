"""``funnel replay``: a data set's events sent to the public API, at the pace at which they happened or faster.

An event's id is ``<run>:<its own id>``. The API knows ids for a day at least, so a replay that was
stopped is
taken up by starting it again with the same run name: what it knows it answers as duplicates, and
there is no state to keep or lose. A request that may or may not have arrived is sent again for the
same reason.
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
from pipelines.ingest.parsing import event_columns, parse_events
from pipelines.ingest.readers import find_files, read_file

_TIMEOUT_S = 30.0
_LONGEST_WAIT_S = 60.0
_AGAIN = {429, 502, 503, 504}

"""Called with what is done, how many events of it are done, and how many there are."""


class ReplayFailed(FunnelError):
    """The API refused a request, or did not come back; the message says how to go on."""


@dataclass(frozen=True)
class ReplayConfig:
    """Where to and how fast.

    ``speed``: how many seconds of the data pass in a second, 0 as many as can be; ``batch``: at
    most so many events a request; ``patience_s``: how long the API may be away or full before the
    replay ends.
    """

    url: str
    run: str
    speed: float = 1.0
    batch: int = 100
    patience_s: float = 600.0

    def __post_init__(self) -> None:
        """Refuse a URL that can never work."""
        if not self.url.startswith(("http://", "https://")):
            raise ReplayFailed(f"--url {self.url}: it begins with http:// or https://")


@dataclass
class Tally:
    """What became of the events sent. One that was taken by a request without an answer counts as a duplicate."""

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
    """Return the good events of a data set's files in the order of time (ties by id), at most the first ``limit``.

    Raises:
        SpecError: a file or column that the spec names is not there, or no event is good.

    """
    latest, known = pd.Timestamp.now(tz="UTC") + pd.Timedelta(days=1), set[str]()
    frames = []
    for path in find_files(spec.events, folder):
        events, _ = parse_events(
            spec, read_file(path, spec.events, event_columns(spec)), latest, known
        )
        frames.append(events)
    events = pd.concat(frames, ignore_index=True)
    if events.empty:
        raise SpecError(f"no usable event in {folder}: see what 'funnel ingest' puts in quarantine")
    return events.sort_values([c.TIMESTAMP, c.EVENT_ID], kind="stable", ignore_index=True).head(
        limit or len(events)
    )


def replay(events: pd.DataFrame, config: ReplayConfig, progress: Progress = no_progress) -> Tally:
    """Send events, in their order, each when it is due: at the start plus its distance from the first over the speed.

    What is due by now goes in one request; an event's timestamp is the moment at which it is due,
    with ``speed`` 0 the one at which it is sent.

    Args:
        events: of ``load_events``.
        config: where to and how fast.
        progress: told after each request.

    Raises:
        ReplayFailed: the API refused a request, or did not come back.

    """
    tally, start, began = Tally(), time.time(), time.monotonic()
    due = _due(events[c.TIMESTAMP], config.speed)
    key = read_settings().key
    headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
    with httpx.Client(base_url=config.url, timeout=_TIMEOUT_S, headers=headers) as client:
        for first, last in _batches(due, config, began):
            moments = start + due[first:last] if config.speed else _now(last - first)
            body = {"events": _bodies(events.iloc[first:last], moments, config.run)}
            answer = _send(client, body, config)
            tally.sent += last - first
            tally.accepted += answer["accepted"]
            tally.duplicates += answer["duplicates"]
            tally.rejected += len(answer["rejected"])
            for refused in answer["rejected"]:
                tally.reasons[refused["reason"]] = tally.reasons.get(refused["reason"], 0) + 1
            progress(f"{tally.accepted} accepted", tally.sent, len(events))
    tally.seconds = time.monotonic() - began
    tally.events_per_s = tally.sent / max(tally.seconds, 1e-9)
    return tally


def _due(times: pd.Series, speed: float) -> np.ndarray:
    """Return when each event is due, in seconds from the start."""
    seconds: np.ndarray = (times - times.iloc[0]).dt.total_seconds().to_numpy()
    return seconds / speed if speed else np.zeros(len(seconds))


def _batches(due: np.ndarray, config: ReplayConfig, began: float) -> Iterator[tuple[int, int]]:
    """Yield the bounds of what is due by now, as soon as there is something."""
    first = 0
    while first < len(due):
        passed = time.monotonic() - began
        if due[first] > passed:
            time.sleep(due[first] - passed)
            continue
        last = min(int(np.searchsorted(due, passed, side="right")), first + config.batch)
        yield first, last
        first = last


def _now(count: int) -> np.ndarray:
    """Return present moments that rise by a microsecond, so that the events keep their order."""
    return time.time() + np.arange(count) * 1e-6


def _bodies(events: pd.DataFrame, moments: np.ndarray, run: str) -> list[dict[str, Any]]:
    columns = (events[name].tolist() for name in (c.EVENT_ID, c.USER, c.ITEM, c.TYPE, c.VALUE))
    bodies = []
    for moment, event_id, user, item, kind, value in zip(moments.tolist(), *columns, strict=True):
        body = {
            "event_id": f"{run}:{event_id}",
            "user_id": user,
            "item_id": item,
            "type": kind,
            "timestamp": moment,
        }
        bodies.append(body if value != value else body | {"value": value})
    return bodies


def _send(client: httpx.Client, body: dict[str, Any], config: ReplayConfig) -> dict[str, Any]:
    """Post a request until it is answered; the same events, with the same ids, each time."""
    deadline = time.monotonic() + config.patience_s
    while True:
        try:
            response = client.post("/v1/events", json=body)
        except httpx.TransportError as error:
            problem, wait = f"{type(error).__name__}: {error}", 1.0
        else:
            if response.status_code == 202:
                return dict(response.json())
            problem, wait = f"{response.status_code} {response.text[:200]}", _retry_after(response)
            if response.status_code not in _AGAIN:
                raise ReplayFailed(
                    f"the API refused a request ({problem}); {_how_to_go_on(config)}"
                )
        if time.monotonic() + wait > deadline:
            raise ReplayFailed(
                f"no answer for {config.patience_s:.0f} s ({problem}); {_how_to_go_on(config)}"
            )
        time.sleep(wait)


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds that an answer asks to wait, 1 if it does not say or gives a date."""
    try:
        return min(max(float(response.headers.get("Retry-After", 1.0)), 0.0), _LONGEST_WAIT_S)
    except ValueError:
        return 1.0


def _how_to_go_on(config: ReplayConfig) -> str:
    return f"go on with --run {config.run}"


def run_replay(
    data: str, data_dir: Path | None, config: ReplayConfig, limit: int | None
) -> dict[str, Any]:
    """Replay a data set's files, and return the summary.

    Raises:
        SpecError: the data set is not known, or its files are not there.
        ReplayFailed: the API refused a request, or did not come back.

    """
    from pipelines import display
    from pipelines.workflow.stages import find_spec

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
