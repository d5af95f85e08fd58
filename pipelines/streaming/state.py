"""A map of Spark's state, read and written many keys at a time.

PySpark's own client waits 200 µs for the JVM's answer to each key, which bounds the job to a few
thousand keys a second. The JVM answers in order, so this one sends a window of requests before it
reads the first answer. The messages are those of ``MapStateClient`` in PySpark 4.3, which has no
call for many keys: check them when PySpark's version is raised.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from pyspark.sql.streaming.proto import StateMessage_pb2 as messages
from pyspark.sql.streaming.stateful_processor import StatefulProcessorHandle

_WINDOW = 128
"""Requests without an answer: few enough that the buffers of neither end fill up."""


class StateMap:
    """A map from strings to strings."""

    def __init__(self, handle: StatefulProcessorHandle, name: str) -> None:
        """Open the map, with columns ``key`` and ``<name>``."""
        state = handle.getMapState(name, "key string", f"{name} string")
        self._name = name
        self._map: Any = state._mapStateClient
        self._api: Any = self._map._stateful_processor_api_client

    def get(self, keys: Sequence[str]) -> Iterator[str | None]:
        """Yield the values of keys, in their order; None where there is none."""
        calls = (
            messages.MapStateCall(getValue=messages.GetValue(userKey=self._key(key)))
            for key in keys
        )
        for value in self._answers(calls):
            yield self._api._deserialize_from_bytes(value)[0] if value else None

    def put(self, values: Iterable[tuple[str, str]]) -> None:
        """Set the values of keys."""
        calls = (
            messages.MapStateCall(
                updateValue=messages.UpdateValue(userKey=self._key(key), value=self._value(value))
            )
            for key, value in values
        )
        for _ in self._answers(calls):
            pass

    def _key(self, key: str) -> bytes:
        return bytes(self._api._serialize_to_bytes(self._map.user_key_schema, (key,)))

    def _value(self, value: str) -> bytes:
        return bytes(self._api._serialize_to_bytes(self._map.value_schema, (value,)))

    def _answers(self, calls: Iterable[Any]) -> Iterator[bytes]:
        calls = iter(calls)
        while window := list(islice(calls, _WINDOW)):
            for call in window:
                call.stateName = self._name
                variable = messages.StateVariableRequest(mapStateCall=call)
                message = messages.StateRequest(stateVariableRequest=variable).SerializeToString()
                self._api.sockfile.write(
                    bytes(4) + len(message).to_bytes(4, "big") + message
                )  # version 0, then length
            self._api.sockfile.flush()
            answers = [self._api._receive_proto_message() for _ in window]
            for status, problem, value in answers:
                if status != 0:
                    raise RuntimeError(f"Spark's state: {problem}")
                yield value
