"""Processes that start in milliseconds: forks of one that has imported the product already.

A fresh interpreter spends 4 to 10 seconds on the imports of a command. Each test process therefore
has one server of forks (``multiprocessing``'s), which imports once and does nothing else: it has no
threads. A fork shares nothing with the test: it can be killed, and it has an environment, an
output and a working folder of its own.
"""

import atexit
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.support.forked_imports"])


class Forked:
    """A running function, with the methods of ``subprocess.Popen`` that tests use."""

    def __init__(self, function, *arguments, out=os.devnull, environment=None):
        """Start ``function(*arguments)``; what it prints is appended to the file ``out``."""
        with open(out, "ab"):
            pass  # it can be read from now on
        given = (str(out), dict(os.environ, **(environment or {})), function, arguments)
        self._process = _CONTEXT.Process(target=_run, args=given)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        """The exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        """Wait for the end and return the exit code.

        Raises:
            subprocess.TimeoutExpired: it still runs after ``timeout`` seconds.

        """
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def run(function, *arguments, out, timeout=600):
    """Run ``function(*arguments)`` in a fork to its end; return its exit code and what it wrote."""
    process = Forked(function, *arguments, out=out)
    process.wait(timeout)
    return process.returncode, Path(out).read_text()


def command(*arguments):
    """Run the command ``funnel`` with these arguments, in a fork."""
    from pipelines.commands.cli import main

    sys.argv = ["funnel", *map(str, arguments)]
    main()


def children_of(pid):
    """Return the ids of a process's children; none once it has ended."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in children.read_text().split()] if children.exists() else []


def kill(process):
    """Kill a process and its children, as a crash of the machine does."""
    pids = children_of(process.pid)
    process.kill()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _run(out, environment, function, arguments):
    with open(out, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    try:
        function(*arguments)
    finally:
        with contextlib.suppress(Exception):
            atexit._run_exitfuncs()  # multiprocessing ends a process without them
