"""Which processes run on this machine."""

from __future__ import annotations

import os


def is_running(pid: int) -> bool:
    """Return whether a process of this id runs on this machine, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
