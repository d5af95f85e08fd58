"""The base of every error that is said to the user in one sentence."""

from __future__ import annotations

from typing import ClassVar


class FunnelError(Exception):
    """Something that the user can mend; the message says what is wrong, where, and what to do.

    The command line prints the message without a stack trace and ends with ``exit_code``.

    Attributes:
        exit_code: 1 if the work failed; 2 if the command was given wrong or too early.

    """

    exit_code: ClassVar[int] = 1
