"""Work that is done again and again beside the requests."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

_log = logging.getLogger(__name__)


class PeriodicTask:
    """Calls a function at an interval on its own thread; errors are logged and do not stop it."""

    def __init__(self, seconds: float, work: Callable[[], Any], name: str) -> None:
        self._seconds = seconds
        self._work = work
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self._work()
            except Exception:
                _log.exception("%s failed; it is called again", self._thread.name)

    def close(self) -> None:
        """Stop; a running call finishes first."""
        self._stop.set()
        self._thread.join(timeout=5.0)
