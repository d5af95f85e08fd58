"""A process is found by its id."""

import os
import subprocess
import sys

from feature_repo.processes import is_running


def test_a_process_runs_until_it_is_gone():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert is_running(process.pid)
    process.communicate()
    assert not is_running(process.pid)
    assert is_running(os.getpid()) and is_running(1)
