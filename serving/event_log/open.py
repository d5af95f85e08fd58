"""The event log of a workspace, by its address."""

from __future__ import annotations

from pathlib import Path

from feature_repo.events.log_names import log_address
from feature_repo.workspace import Workspace
from serving.event_log.port import EventLog
from serving.event_log.redis_stream import RedisStreamLog


def open_log(workspace: Workspace) -> EventLog:
    """Return the event log that ``FUNNEL_EVENT_LOG`` names, by default the Redis Stream.

    Raises:
        SettingsError: the variable names no log.
        KafkaMissing: it names a topic, and the client of Kafka is not installed.

    """
    address = log_address()
    if address is None:
        return RedisStreamLog(workspace)
    if isinstance(address, Path):
        from serving.event_log.file_log import FileLog

        return FileLog(workspace, address)
    from serving.event_log.kafka_log import KafkaLog

    return KafkaLog(workspace, address)
