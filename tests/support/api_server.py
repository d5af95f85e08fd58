"""``funnel serve`` in a process of its own, and a client of it."""

import contextlib
import os
import signal
import socket
import time
from pathlib import Path

import httpx

from tests.support.forked import Forked, children_of, command


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_server(workspace):
    port, log = free_port(), workspace.root / "api.log"
    process = Forked(command, "serve", "--home", workspace.root, "--port", port, out=log)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20)
    deadline = time.monotonic() + 90
    while True:
        try:
            client.get("/healthz")
            return process, client
        except httpx.TransportError:
            assert process.poll() is None, log.read_text()[-3_000:]
            assert time.monotonic() < deadline
            time.sleep(0.1)


def stop(process):
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)


def workers_of(process, port):
    """Return the ids of the children of a server that hold its port.

    Its workers, not its helper.
    """
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    (inode,) = [line[9] for line in lines if line[3] == "0A" and line[1].endswith(f":{port:04X}")]
    return [pid for pid in children_of(process.pid) if _holds(pid, f"socket:[{inode}]")]


def _holds(pid, target):
    with contextlib.suppress(OSError):
        return any(os.readlink(one) == target for one in Path(f"/proc/{pid}/fd").iterdir())
    return False
