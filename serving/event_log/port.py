"""The port of the event log; a Redis Stream, files and Kafka are its adapters.

What holds when a process is killed, or a machine goes, at any moment:

=====================  ===============  ===============  =========================================
..                     Redis Stream     files            Kafka
=====================  ===============  ===============  =========================================
an accepted event      is in the log    is in the log    is in the log
an unanswered event,   is accepted      is accepted      is accepted once; but twice if the kill,
sent again             once             once             or the loss of Redis, fell between the
                                                         broker's report and the mark
                                                         (milliseconds), or if the broker took the
                                                         event and its report never came
a retry after a kill   is answered at   is answered at   is refused (503) for up to a minute, then
                       once             once             accepted
=====================  ===============  ===============  =========================================

No adapter answers "duplicate" for an event that is not in its log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from feature_repo.errors import FunnelError
from feature_repo.events.stored import StoredEvent


class LogFull(FunnelError):
    """The log is full of events that the streaming job has not processed; nothing was appended."""


@dataclass(frozen=True)
class Appended:
    """What became of events that were given to a log.

    Attributes:
        accepted: number of events that were new.
        duplicates: positions, in what was given, of events that repeat an ``event_id`` of the last
            24 hours, whoever's event had it.

    """

    accepted: int
    duplicates: tuple[int, ...] = ()


class EventLog(Protocol):
    """Where accepted events go: the port that Redis Stream, Kafka and files are adapters of."""

    def append(self, events: Sequence[StoredEvent]) -> Appended:
        """Append checked events; when it returns they are durable.

        Raises:
            OnlineStoreUnavailable: the log did not answer; repeating the call is safe.
            LogFull: nothing was appended.

        """
