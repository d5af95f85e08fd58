"""Intake of ``POST /v1/events``: checks each event and appends the valid ones to the log."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any, cast

from prometheus_client import Counter

from feature_repo.dataset import DatasetSpec
from feature_repo.events.context import checked_context
from feature_repo.events.stored import StoredEvent
from serving.api.problems import printable
from serving.api.schemas import Event, EventReceipt, RejectedEvent
from serving.erasure import Erasure
from serving.event_log.port import EventLog

_OLDEST_EVENT_S = 7 * 86_400
_CLOCK_SKEW_S = 300


class Intake:
    """Checks events against a data set's types and appends them to its log."""

    def __init__(
        self, log: EventLog, spec: DatasetSpec, counter: Counter, erasure: Erasure | None = None
    ) -> None:
        """``counter`` counts events by ``outcome``; ``erasure`` knows erased users."""
        self._log = log
        self._spec = spec
        self._counter = counter
        self._erasure = erasure

    def accept(self, raw: Sequence[dict[str, Any]]) -> EventReceipt:
        """Check events one by one and append the valid ones; they are durable then.

        Raises:
            OnlineStoreUnavailable: the log did not answer; repeating the call is safe.
            LogFull: the log takes no more for now; nothing was appended.

        """
        checked, reasons = self._check_all(raw)
        valid = list(checked.values())
        appended = self._log.append(valid)
        self._remove_erased(valid)
        indices = list(checked)
        duplicates = [indices[position] for position in appended.duplicates]

        outcomes = {
            "accepted": appended.accepted,
            "duplicate": len(duplicates),
            "rejected": len(reasons),
        }
        for outcome, count in outcomes.items():
            self._counter.labels(outcome).inc(count)

        rejected = [
            RejectedEvent(index=i, reason=printable(reason))
            for i, reason in sorted(reasons.items())
        ]
        return EventReceipt(
            accepted=appended.accepted,
            duplicates=len(duplicates),
            duplicate_indices=duplicates,
            rejected=rejected,
        )

    def _check_all(
        self, raw: Sequence[dict[str, Any]]
    ) -> tuple[dict[int, StoredEvent], dict[int, str]]:
        """Return by index the valid events, and why the others are rejected."""
        valid: dict[int, StoredEvent] = {}
        reasons: dict[int, str] = {}
        now = time.time()
        for index, fields in enumerate(raw):
            try:
                valid[index] = self._checked(fields, now)
            except ValueError as error:
                reasons[index] = _reason(error)

        erased = self._erased(valid.values())
        for index, event in list(valid.items()):
            if event["user_id"] in erased:
                reasons[index] = "user was erased"
                del valid[index]
        return valid, reasons

    def _erased(self, events: Collection[StoredEvent]) -> set[str]:
        return (
            self._erasure.erased.among({event["user_id"] for event in events})
            if self._erasure
            else set()
        )

    def _remove_erased(self, events: Collection[StoredEvent]) -> None:
        """Remove events of users who were erased between the check and the append."""
        if self._erasure:
            for user in self._erased(events):
                self._erasure.forget(user)

    def _checked(self, fields: dict[str, Any], now: float) -> StoredEvent:
        event = Event.model_validate(fields)
        kind = self._spec.event_type(event.type)
        if kind is None:
            raise ValueError(f"unknown type '{event.type}'; known: {self._spec.event_types}")
        timestamp = event.timestamp
        if not timestamp > now - _OLDEST_EVENT_S:
            raise ValueError("timestamp is more than 7 days ago")
        if timestamp > now + _CLOCK_SKEW_S:
            raise ValueError("timestamp is more than 5 minutes in the future")
        checked = event.model_dump(exclude_none=True, exclude={"context"})
        checked |= {"type": kind, "timestamp": timestamp}
        context = checked_context(event.context or {}, self._spec.context)
        return cast(StoredEvent, checked | ({"context": context} if context else {}))


def _reason(error: ValueError) -> str:
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    return "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'event'}: {problem['msg']}" for problem in errors()
    )
