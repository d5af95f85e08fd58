"""uvicorn's HTTP protocol with limits on what a client may send and how long it may take.

Without them a header without an end fills the memory, and a client that sends nothing holds its
connection for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from serving.api.problems import MEDIA_TYPE, problem_body

MAX_HEAD = 64 * 1024
"""Bytes that a request's line and headers may have."""

HEAD_S = 10.0
"""Seconds in which a request's line and headers must come."""

BODY_S = 30.0
"""Seconds in which a request's body must come."""

READ_S = 30.0
"""Seconds for which a client may leave an answer unread."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection.

    A head that is too long is answered with 431; a client that is too slow loses its connection.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        *,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_lost`` is called when the connection has ended."""
        super().__init__(config, server_state, app_state)
        self._on_lost = on_lost
        self._headers_size = 0
        self._partial_size = 0
        self._in_head = False
        self._in_body = False
        self._refused = False
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, not for ever."""
        super().connection_made(transport)
        self._allow(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        super().connection_lost(exc)
        self._stop_timer()
        self.resume_writing()
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        if self._refused:
            return
        super().data_received(data)
        if self._refused or self.transport.is_closing():
            return
        if self._in_head:
            self._partial_size += len(data)
            if self._partial_size > MAX_HEAD:
                self._refuse_head()
                return
        being_answered = self.cycle is not None and not self.cycle.response_complete
        if self._in_head or not being_answered:
            self._allow(HEAD_S)
        elif self._in_body:
            self._allow(BODY_S)
        else:
            self._stop_timer()

    def on_message_begin(self) -> None:
        """Begin a request's head."""
        super().on_message_begin()
        self._headers_size = 0
        self._partial_size = 0
        self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header that came whole."""
        self._headers_size += len(name) + len(value)
        if self._headers_size <= MAX_HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin a request's body, or refuse the request."""
        self._in_head = False
        self._in_body = True
        self._stop_timer()
        if self._headers_size + len(self.url) > MAX_HEAD:
            self._refuse_head()
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._in_body = False
        if not self._refused:
            super().on_message_complete()

    def pause_writing(self) -> None:
        """Wait for a client that does not read, not for ever."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(READ_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on writing."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _allow(self, seconds: float) -> None:
        """Start the clock of this part of a request, unless it runs."""
        if self._timer is None:
            self._timer = self.loop.call_later(seconds, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def _refuse_head(self) -> None:
        """Answer 431 and close the connection."""
        self._refused = True
        body = problem_body(
            431, "the request's headers are too large", f"they may have {MAX_HEAD} bytes"
        )
        self.transport.write(
            b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
            b"content-type: " + MEDIA_TYPE.encode() + b"\r\n"
            b"content-length: " + str(len(body)).encode() + b"\r\n"
            b"connection: close\r\n\r\n" + body
        )
        self.transport.close()
