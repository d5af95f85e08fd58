"""What Spark leaves on the disk when it is killed is removed by whoever comes next."""

import os
import signal

from pipelines.features.spark_scratch import living_scratch, own_scratch, remove_dead_scratch
from tests.support.forked import Forked
from tests.support.waiting import wait_until


def use(work):
    folder = own_scratch(work)
    (folder / "blockmgr-1" / "0a").mkdir(parents=True)
    (folder / "blockmgr-1" / "0a" / "shuffle_0_0_0.data").write_text("rows of users")
    signal.pause()


def test_folders_of_dead_processes_go_and_of_living_ones_stay(tmp_path):
    local = tmp_path / "spark" / "local"
    dead, living = (Forked(use, tmp_path) for _ in range(2))
    try:
        wait_until(lambda: len(list(local.glob("*/*/*/*.data"))) == 2, 60)
        old = local / "blockmgr-of-an-earlier-version"
        old.mkdir()
        dead.kill()
        dead.wait()
        assert remove_dead_scratch(tmp_path) == 2
        (left,) = local.glob("[!.]*")
        assert left.name.startswith(f"{living.pid}-") and living_scratch(tmp_path) == [left]
    finally:
        for process in (dead, living):
            process.kill()
            process.wait()
    assert remove_dead_scratch(tmp_path) == 1 and not list(local.iterdir())


def test_a_process_keeps_one_folder_which_is_nobody_elses(tmp_path):
    mine = own_scratch(tmp_path)
    assert own_scratch(tmp_path) == mine and mine.name.startswith(f"{os.getpid()}-")
    assert remove_dead_scratch(tmp_path) == 0 and living_scratch(tmp_path) == []
    assert mine.is_dir()
