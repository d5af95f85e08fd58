"""How many threads one inference may use."""

from feature_repo.settings import read_settings


def inference_threads() -> int:
    """Return ``FUNNEL_THREADS``, by default 1.

    A server answers several requests at once, and threads within one would only get in the way; the
    command line sets it to the number of cores for work that goes through one batch after another.
    """
    return read_settings().threads or 1
