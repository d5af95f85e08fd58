"""Time that a request may take, and what is known of the time that its parts take."""

from __future__ import annotations

import math
import time


class Deadline:
    """A moment by which a request should be answered."""

    def __init__(self, seconds: float, start: float | None = None) -> None:
        """``start``: when the request came, by ``time.perf_counter`` (default: now)."""
        self._end = (time.perf_counter() if start is None else start) + seconds

    def left(self) -> float:
        """Return the seconds that are left, negative when it has passed."""
        return self._end - time.perf_counter()


NEVER = Deadline(math.inf)


class Cost:
    """What a step takes, learnt from its last runs: their mean, recent ones weighing most.

    Threads share it without a lock; a lost update costs nothing but its own weight.
    """

    def __init__(self, weight: float = 0.1) -> None:
        self.seconds = 0.0
        self._weight = weight

    def fits(self, deadline: Deadline, margin: float = 1.5) -> bool:
        """Return whether a run is likely to end in time; if not, the next time it is a little likelier.

        Without that one slow spell would keep the step from ever being tried again.
        """
        if deadline.left() >= self.seconds * margin and deadline.left() > 0:
            return True
        self.seconds *= 0.9
        return False

    def took(self, seconds: float) -> None:
        """Note a run."""
        self.seconds += self._weight * (seconds - self.seconds)


class Breaker:
    """A circuit breaker (Nygard, "Release It!"): after failures in a row calls are not tried for a while.

    One caller at a time then tries again; the others go on without.
    """

    def __init__(self, failures: int = 5, open_s: float = 0.5) -> None:
        self._limit, self._open_s = failures, open_s
        self._failed, self._next_try = 0, 0.0

    @property
    def closed(self) -> bool:
        """Whether calls go through."""
        return self._failed < self._limit

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
        """Note that a call went well."""
        self._failed = 0

    def failed(self) -> None:
        """Note that a call went wrong."""
        self._failed += 1
        self._next_try = time.monotonic() + self._open_s
