"""What ``POST /v1/events`` does: each event checked by itself, the good ones appended to the log."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd
from prometheus_client import Counter

from feature_repo.dataset import DatasetSpec
from serving.api.schemas import Event, EventReceipt, RejectedEvent
from serving.erasure import Erasure
from serving.event_log.redis_stream import EventLog

_OLDEST_EVENT_S = 7 * 86_400
_CLOCK_SKEW_S = 300


class Intake:
    """Checks events against a data set's types and appends them to its log."""

    def __init__(
        self, log: EventLog, spec: DatasetSpec, counter: Counter, erasure: Erasure | None = None
    ) -> None:
        """``counter`` counts events by ``outcome``: accepted, duplicate, rejected; ``erasure`` knows erased users."""
        self._log, self._types, self._counter, self._erasure = (
            log,
            spec.event_types,
            counter,
            erasure,
        )

    def accept(self, raw: Sequence[dict[str, Any]]) -> EventReceipt:
        """Check events one by one and append the good ones; when it returns they are durable.

        Raises:
            OnlineStoreUnavailable: the log did not answer; repeating the call is safe.
            LogFull: the log takes no more for now; nothing was appended.

        """
        good, rejected = {}, []
        now = time.time()
        for index, fields in enumerate(raw):
            try:
                good[index] = self._checked(fields, now)
            except ValueError as error:
                rejected.append(RejectedEvent(index=index, reason=_reason(error)))
        gone = self._erased(good.values())
        if gone:
            refused = [index for index, event in good.items() if event["user_id"] in gone]
            rejected += [RejectedEvent(index=index, reason="user was erased") for index in refused]
            rejected.sort(key=lambda one: one.index)
            good = {index: event for index, event in good.items() if event["user_id"] not in gone}
        appended = self._log.append(list(good.values()))
        self._take_back(good.values())
        outcomes = {
            "accepted": appended.accepted,
            "duplicate": appended.duplicates,
            "rejected": len(rejected),
        }
        for outcome, count in outcomes.items():
            self._counter.labels(outcome).inc(count)
        return EventReceipt(
            accepted=appended.accepted, duplicates=appended.duplicates, rejected=rejected
        )

    def _erased(self, events: Collection[dict[str, Any]]) -> set[str]:
        return (
            self._erasure.erased.among({event["user_id"] for event in events})
            if self._erasure
            else set()
        )

    def _take_back(self, events: Collection[dict[str, Any]]) -> None:
        """Remove what was appended of a user who was erased between the check and the append."""
        if self._erasure:
            for user in self._erased(events):
                self._erasure.forget(user)

    def _checked(self, fields: dict[str, Any], now: float) -> dict[str, Any]:
        event = Event.model_validate(fields)
        if event.type not in self._types:
            raise ValueError(f"unknown type '{event.type}'; known: {self._types}")
        moment = _epoch(event.timestamp)
        if not moment > now - _OLDEST_EVENT_S:
            raise ValueError("timestamp is more than 7 days ago")
        if moment > now + _CLOCK_SKEW_S:
            raise ValueError("timestamp is more than 5 minutes in the future")
        return {**event.model_dump(exclude_none=True), "timestamp": moment}


def _epoch(moment: float | str) -> float:
    if isinstance(moment, str):
        try:
            stamp = pd.Timestamp(moment)
        except (ValueError, OverflowError):
            raise ValueError("timestamp is neither epoch seconds nor ISO 8601") from None
        if pd.isna(stamp):
            raise ValueError("timestamp is neither epoch seconds nor ISO 8601")
        return float((stamp.tz_localize("UTC") if stamp.tzinfo is None else stamp).timestamp())
    if not math.isfinite(moment):
        raise ValueError("timestamp is not a finite number")
    return float(moment)


def _reason(error: ValueError) -> str:
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    return "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'event'}: {problem['msg']}" for problem in errors()
    )
