"""The parent of the workers: a failed restart costs nothing, a failing process little."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from feature_repo.errors import FunnelError
from serving.process.supervisor import Supervisor
from tests.support.forked import Forked, children_of
from tests.support.waiting import wait_until as wait_for

wait_until = partial(wait_for, patience_s=60)


def supervise(folder: Path) -> None:
    """Run two workers that fail to start, or never start, while a file of that name exists."""

    def work(ready: Callable[[], None], _slot: int) -> None:
        if (folder / "failing").exists():
            raise FunnelError("nothing can start here")
        ready()
        signal.pause()

    def help_workers(_: Callable[[], None], __: int) -> None:
        with (folder / "helped").open("a") as file:
            file.write(".")
        if (folder / "helper fails").exists():
            raise FunnelError("the helper cannot start")
        signal.pause()

    Supervisor(2, work, help_workers).run(lambda: (folder / "started").touch())


class Supervised:
    """A supervisor in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._out = folder / "log"
        self.process = Forked(supervise, folder, out=self._out)
        wait_until((folder / "started").exists)

    @property
    def log(self) -> str:
        return self._out.read_text()

    def children(self) -> set[int]:
        return set(children_of(self.process.pid))

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    running = Supervised(tmp_path)
    yield running
    running.process.terminate()
    assert running.process.wait(60) == 0


def test_a_restart_that_fails_leaves_the_old_workers(supervised: Supervised) -> None:
    before = supervised.children()
    assert len(before) == 3
    (supervised.folder / "failing").touch()
    supervised.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "the old ones go on" in supervised.log)
    assert supervised.children() == before
    assert "nothing can start here" in supervised.log and "Traceback" not in supervised.log

    (supervised.folder / "failing").unlink()
    supervised.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(supervised.children() - before) == 2 and len(supervised.children()) == 3)


def test_a_process_that_keeps_failing_is_started_less_and_less_often(
    supervised: Supervised,
) -> None:
    helped = supervised.folder / "helped"
    assert helped.read_text() == "."
    files = supervised.open_files()
    (supervised.folder / "helper fails").touch()
    [helper] = [pid for pid in supervised.children() if pid == max(supervised.children())]
    os.kill(helper, signal.SIGKILL)
    time.sleep(5)
    # Right away, right away, after a second, after two more: never five times in five seconds.
    assert 3 <= len(helped.read_text()) <= 6
    assert supervised.open_files() <= files
    assert supervised.log.count("the helper cannot start") <= 5
    assert "Traceback" not in supervised.log

    (supervised.folder / "helper fails").unlink()
    wait_until(lambda: len(supervised.children()) == 3)


def test_workers_that_die_leave_no_open_files(supervised: Supervised) -> None:
    files = supervised.open_files()
    for _ in range(3):
        before = supervised.children()
        os.kill(min(before), signal.SIGKILL)
        wait_until(
            lambda seen=before: len(supervised.children()) == 3 and supervised.children() != seen
        )
    # A file that is being read is open for a moment; one that was left open stays so.
    wait_until(lambda: supervised.open_files() <= files)
