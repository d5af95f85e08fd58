"""A Kafka broker inside this process.

The one that librdkafka, which the client's wheel carries, has for tests.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int, c_int16, c_int32, c_size_t, c_void_p
from pathlib import Path

import confluent_kafka as kafka

PRODUCE = 0
"""The protocol's number of a produce request."""

_SIGNATURES = {
    "rd_kafka_conf_new": (c_void_p, []),
    "rd_kafka_new": (c_void_p, [c_int, c_void_p, c_char_p, c_size_t]),
    "rd_kafka_destroy": (None, [c_void_p]),
    "rd_kafka_mock_cluster_new": (c_void_p, [c_void_p, c_int]),
    "rd_kafka_mock_cluster_destroy": (None, [c_void_p]),
    "rd_kafka_mock_cluster_bootstraps": (c_char_p, [c_void_p]),
    "rd_kafka_mock_topic_create": (c_int, [c_void_p, c_char_p, c_int, c_int]),
    "rd_kafka_mock_broker_set_down": (c_int, [c_void_p, c_int32]),
    "rd_kafka_mock_broker_set_up": (c_int, [c_void_p, c_int32]),
    "rd_kafka_mock_push_request_errors_array": (
        None,
        [c_void_p, c_int16, c_size_t, ctypes.POINTER(c_int)],
    ),
}


def _library() -> ctypes.CDLL:
    wheel = Path(kafka.__file__).parent.parent / "confluent_kafka.libs"
    library = ctypes.CDLL(str(next(wheel.glob("librdkafka*"))))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class MockKafka:
    """One broker on a port of its own; it speaks the protocol to any client."""

    def __init__(self) -> None:
        self._library = _library()
        settings = self._library.rd_kafka_conf_new()
        self._handle = self._library.rd_kafka_new(
            0, settings, ctypes.create_string_buffer(512), 512
        )
        self._cluster = self._library.rd_kafka_mock_cluster_new(self._handle, 1)
        self.servers: str = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def create(self, topic: str, partitions: int = 1) -> None:
        assert not self._library.rd_kafka_mock_topic_create(
            self._cluster, topic.encode(), partitions, 1
        )

    def go_down(self) -> None:
        self._library.rd_kafka_mock_broker_set_down(self._cluster, 1)

    def come_up(self) -> None:
        self._library.rd_kafka_mock_broker_set_up(self._cluster, 1)

    def fail_next(self, *codes: int) -> None:
        """Answer the next produce requests with these errors."""
        errors = (c_int * len(codes))(*codes)
        self._library.rd_kafka_mock_push_request_errors_array(
            self._cluster, PRODUCE, len(codes), errors
        )

    def messages(self, topic: str) -> list[kafka.Message]:
        """Return all that is in a topic of one partition."""
        place = kafka.TopicPartition(topic, 0, 0)
        consumer = kafka.Consumer({"bootstrap.servers": self.servers, "group.id": "g"})
        try:
            _, end = consumer.get_watermark_offsets(place, timeout=5)
            consumer.assign([place])
            found = [consumer.poll(5) for _ in range(end)]
            assert all(message is not None and message.error() is None for message in found)
            return found
        finally:
            consumer.close()

    def close(self) -> None:
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._handle)
