"""The event log as a Kafka topic; Redis keeps deduplication and the overlay."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from feature_repo.errors import FunnelError
from feature_repo.events.log_names import KafkaAddress
from feature_repo.events.stored import StoredEvent
from feature_repo.workspace import Workspace
from serving.event_log.dedup import Entry, EventDedup, appended, entries_of
from serving.event_log.port import Appended, LogFull
from serving.online.features import OnlineStoreUnavailable

_DELIVERY_MS = 5_000
# The client reports every message within its delivery time; more is a client that hangs.
_REPORT_S = 10.0
_LOG_APPEND_TIME = 2  # confluent_kafka.TIMESTAMP_LOG_APPEND_TIME

_log = logging.getLogger(__name__)


class KafkaMissing(FunnelError):
    """The client of Kafka is not installed."""


class Producer(Protocol):
    """What of confluent_kafka.Producer is used."""

    def produce(self, topic: str, value: bytes, key: bytes, *, on_delivery: Any) -> None:
        """Queue a message; ``on_delivery(error, message)`` is called by ``poll`` or ``flush``."""

    def flush(self, timeout: float) -> int:
        """Send what is queued and wait for the brokers' reports."""

    def poll(self, timeout: float) -> int:
        """Serve delivery reports."""

    def list_topics(self, topic: str, timeout: float) -> Any:
        """Ask the brokers what they know of a topic."""


class KafkaLog:
    """A Kafka topic: written by all replicas in sync, keyed by user.

    The topic has one partition and the brokers' time (``message.timestamp.type=LogAppendTime``): an
    entry's position is ``<timestamp>-<offset>``, and the stream takes what is behind a key's
    position for included already. A partition orders a user's events; an item's come from all
    users.

    An event's id is marked as being written before it is sent and for good when the broker has it,
    so that no kill makes a retry a repeat of nothing. How long events are kept is the topic's
    matter: there is no bound here, and no LogFull for want of room.
    """

    def __init__(
        self, workspace: Workspace, address: KafkaAddress, producer: Producer | None = None
    ) -> None:
        """``producer``: by default a client of the address.

        Raises:
            KafkaMissing: the client is not installed.

        """
        client = _client()
        self._failures = (client.KafkaException, BufferError)
        self._producer: Producer = producer or client.Producer(
            {
                "bootstrap.servers": address.servers,
                "acks": "all",
                "enable.idempotence": True,  # the client's own retries neither double nor reorder
                "message.timeout.ms": _DELIVERY_MS,
            }
        )
        self._dedup = EventDedup(workspace)
        self._topic = address.topic
        self._checked = False
        self._warned = False

    def append(self, events: Sequence[StoredEvent]) -> Appended:
        """Append checked events; when it returns the brokers have them.

        Their users' next requests see them, unless Redis went away in that moment.

        Raises:
            OnlineStoreUnavailable: Redis or Kafka did not answer, or took a part; repeating the
                call is safe.
            LogFull: Redis has no memory left; nothing was appended.

        """
        if not events:
            return Appended(0)
        self._check_topic()
        new = self._dedup.reserve(entries_of(events))
        written, refused, reason = self._write(new)
        try:
            self._dedup.settle(written)
            self._dedup.release(refused)
        except (OnlineStoreUnavailable, LogFull) as error:
            # What is in the log is accepted: a retry would double it.
            _log.warning("%d events are in Kafka and not marked in Redis: %s", len(written), error)
        if len(written) < len(new):
            raise OnlineStoreUnavailable(
                f"Kafka did not take {len(new) - len(written)} events: {reason}"
            )
        return appended(events, new)

    def _write(self, entries: Sequence[Entry]) -> tuple[list[tuple[Entry, str]], list[Entry], str]:
        """Return the written entries with their positions, the refused ones, and why.

        An entry that the brokers did not report is in neither list.
        """
        written: list[tuple[Entry, str]] = []
        refused: list[Entry] = []
        reasons = ["no answer"]

        def report(entry: Entry, error: Any, message: Any) -> None:
            if error is None:
                written.append((entry, self._position(message)))
            else:
                reasons.append(str(error))
                refused.append(entry)

        for entry in entries:
            key = entry.event["user_id"].encode()
            try:
                self._producer.produce(
                    self._topic,
                    entry.payload.encode(),
                    key,
                    on_delivery=partial(report, entry),
                )
            except self._failures as error:
                report(entry, error, None)
        deadline = time.monotonic() + _REPORT_S
        self._producer.flush(_REPORT_S)
        # Another thread's flush may have taken a report and not have passed it on yet.
        while len(written) + len(refused) < len(entries) and time.monotonic() < deadline:
            self._producer.poll(0.01)
        return list(written), list(refused), reasons[-1]

    def _position(self, message: Any) -> str:
        kind, milliseconds = message.timestamp()
        if kind != _LOG_APPEND_TIME and not self._warned:
            self._warned = True
            _log.warning(
                "topic %s has its senders' time; set message.timestamp.type=LogAppendTime",
                self._topic,
            )
        return f"{milliseconds}-{message.offset()}"

    def _check_topic(self) -> None:
        if self._checked:
            return
        try:
            topic = self._producer.list_topics(self._topic, _DELIVERY_MS / 1_000).topics[
                self._topic
            ]
        except self._failures as error:
            raise OnlineStoreUnavailable(f"Kafka does not answer: {error}") from error
        if topic.error is not None:
            raise OnlineStoreUnavailable(f"topic {self._topic}: {topic.error}")
        if len(topic.partitions) != 1:
            raise OnlineStoreUnavailable(
                f"topic {self._topic} has {len(topic.partitions)} partitions: make one with a "
                "single partition"
            )
        self._checked = True


def _client() -> Any:
    try:
        return importlib.import_module("confluent_kafka")
    except ImportError:
        raise KafkaMissing(
            "FUNNEL_EVENT_LOG names Kafka, whose client is missing: pip install '.[kafka]'"
        ) from None
