"""Deadlines of requests, running means of step times, and a circuit breaker."""

from __future__ import annotations

import math
import time


class Deadline:
    """The time by which a request should be answered."""

    def __init__(self, seconds: float, start: float | None = None) -> None:
        """``start``: when the request came, by ``time.perf_counter`` (default: now)."""
        self._end = (time.perf_counter() if start is None else start) + seconds

    def remaining(self) -> float:
        """Return the seconds until the deadline, negative when it has passed."""
        return self._end - time.perf_counter()


NEVER = Deadline(math.inf)


class StepTime:
    """The time that a step takes: an exponentially weighted mean of its runs.

    Threads share it without a lock; a lost update costs no more than its own weight.
    """

    def __init__(self, weight: float = 0.1) -> None:
        self.seconds = 0.0
        self._weight = weight

    def fits(self, deadline: Deadline, margin: float = 1.5) -> bool:
        """Return whether a run will probably end before the deadline.

        Each refusal lowers the estimate a little; otherwise one slow spell would keep the step
        from ever being tried again.
        """
        if deadline.remaining() >= self.seconds * margin and deadline.remaining() > 0:
            return True
        self.seconds *= 0.9
        return False

    def record(self, seconds: float) -> None:
        """Record the time of a run."""
        self.seconds += self._weight * (seconds - self.seconds)


class Breaker:
    """A circuit breaker (Nygard, "Release It!"): it stops calls after failures in a row.

    When some time has passed, one caller tries again; the others go on without.
    """

    def __init__(self, failures: int = 5, open_s: float = 0.5) -> None:
        self._limit = failures
        self._open_s = open_s
        self._failures = 0
        self._next_try = 0.0

    @property
    def closed(self) -> bool:
        """Whether calls go through."""
        return self._failures < self._limit

    def allows(self) -> bool:
        """Return whether this caller may try."""
        if self.closed:
            return True
        now = time.monotonic()
        if now < self._next_try:
            return False
        self._next_try = now + self._open_s
        return True

    def succeeded(self) -> None:
        """Record a successful call."""
        self._failures = 0

    def failed(self) -> None:
        """Record a failed call."""
        self._failures += 1
        self._next_try = time.monotonic() + self._open_s
