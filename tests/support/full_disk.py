"""A disk on which nothing larger than some bytes can be written: the limit of a process's files.

The kernel then refuses writes as it does on a full disk, with another number; what is written
before stays, as it does there.
"""

import resource

from tests.support import forked


def limited(limit, *arguments):
    """Run ``funnel`` with these arguments; no file may become larger than ``limit`` bytes."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    forked.command(*arguments)
