"""How many threads one inference may use."""

import os


def inference_threads() -> int:
    """Return ``FUNNEL_THREADS``, by default 1.

    A server answers several requests at once, and threads within one would only get in the way; the
    command line sets it to the number of cores for work that goes through one batch after another.
    """
    return max(1, int(os.environ.get("FUNNEL_THREADS", "1")))
