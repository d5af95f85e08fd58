"""Waiting for another process or thread, with an end."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], patience_s: float = 600, what: str = "") -> None:
    """Ask until ``condition`` holds, and fail after ``patience_s`` seconds."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited too long {what}"
        time.sleep(0.05)
