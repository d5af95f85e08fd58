"""A Spark standalone cluster on loopback: a master and workers, each a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyspark

from pipelines.features.java import java_home
from tests.support.built_once import ROOT
from tests.support.waiting import wait_until

_SPARK_CLASS = Path(pyspark.__file__).parent / "bin" / "spark-class"
_DEPLOY = "org.apache.spark.deploy"


@dataclass
class SparkCluster:
    """A running cluster; ``workers`` are those that have not been killed."""

    master: str
    folder: Path
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    started: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a driver of this cluster."""
        return {
            "FUNNEL_PROFILE": "cluster",
            "FUNNEL_SPARK_MASTER": self.master,
            "PYSPARK_PYTHON": sys.executable,
            "SPARK_LOCAL_IP": "127.0.0.1",
        }

    def start_workers(self, number: int = 1) -> None:
        """Start workers of one core, and wait until the master knows them."""
        logs = []
        for _ in range(number):
            self.started += 1
            logs.append(self.folder / f"worker-{self.started}.log")
            arguments = ["--cores", "1", "--memory", "1g", "--webui-port", "0"]
            command = ["worker.Worker", "--host", "127.0.0.1", *arguments, self.master]
            self.workers.append(_start(self.folder, logs[-1], command))
        known = "Successfully registered with master"
        wait_until(lambda: all(known in log.read_text() for log in logs), 120)

    def kill_worker(self) -> None:
        """Kill the oldest worker and all that it has started, as the end of its machine would."""
        worker = self.workers.pop(0)
        for pid in [worker.pid, *_descendants(worker.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        worker.wait(timeout=30)


@contextlib.contextmanager
def spark_cluster(folder: Path, workers: int = 2) -> Iterator[SparkCluster]:
    """Run a cluster while the body runs; logs and scratch files go to ``folder``."""
    port = free_port()
    master_log = folder / "master.log"
    command = ["master.Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", "0"]
    master = _start(folder, master_log, command)
    cluster = SparkCluster(f"spark://127.0.0.1:{port}", folder)
    try:
        wait_until(lambda: "I have been elected leader" in master_log.read_text(), 120)
        cluster.start_workers(workers)
        yield cluster
    finally:
        for process in (*cluster.workers, master):
            process.terminate()
        for process in (*cluster.workers, master):
            process.wait(timeout=60)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(folder: Path, log: Path, command: list[str]) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "JAVA_HOME": str(java_home(folder)),
        "PYTHONPATH": str(ROOT),  # an installed package would do
        "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_LOCAL_DIRS": str(folder / "local"),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_WORKER_DIR": str(folder / "work"),
    }
    with log.open("wb") as file:
        return subprocess.Popen(
            [str(_SPARK_CLASS), f"{_DEPLOY}.{command[0]}", *command[1:]],
            env=environment,
            cwd=folder,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def _descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that they have."""
    children: list[int] = []
    for threads in Path("/proc").glob(f"{pid}/task/*/children"):
        with contextlib.suppress(OSError):
            children += map(int, threads.read_text().split())
    return children + [pid for child in children for pid in _descendants(child)]
