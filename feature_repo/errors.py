"""The base of every error that is said to the user in one sentence."""

from __future__ import annotations

import errno
import os
from typing import ClassVar

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the limit of a file's size is reached",
}


class FunnelError(Exception):
    """Something that the user can mend; the message says what is wrong, where, and what to do.

    The command line prints the message without a stack trace and ends with ``exit_code``.

    Attributes:
        exit_code: 1 if the work failed; 2 if the command was given wrong or too early.

    """

    exit_code: ClassVar[int] = 1


def disk_full(error: BaseException) -> str | None:
    """Return a sentence if an error, or one that caused it, is that nothing more can be written.

    Libraries wrap the system's error in others, of which only the text is left.
    """
    seen: BaseException | None = error
    while seen is not None:
        number = seen.errno if isinstance(seen, OSError) else None
        for code, said in _FULL.items():
            if number == code or (number is None and os.strerror(code) in str(seen)):
                where = f" ({seen.filename})" if isinstance(seen, OSError) and seen.filename else ""
                return (
                    f"{said}{where}: nothing that was finished before is lost; "
                    "free space and run the command again"
                )
        seen = seen.__cause__ or seen.__context__
    return None
