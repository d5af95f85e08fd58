"""``serve`` with two workers over a release and a working folder, in a process of its own."""

import signal
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

from serving.process.server import serve
from tests.support.api_server import free_port, workers_of
from tests.support.forked import Forked
from tests.support.waiting import wait_until

PATIENCE_S = 60.0


class TinyServer(NamedTuple):
    process: Forked
    port: int
    log: Path

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def workers(self):
        """Return the process ids of the workers that accept connections."""
        return set(workers_of(self.process, self.port))

    def recommend(self):
        query = {"user_id": "u1", "k": 3}
        return httpx.post(f"{self.url}/v1/recommendations", json=query, timeout=20)


@contextmanager
def tiny_server(workspace, release, **variables):
    """Serve a release's folder, with these environment variables; SIGTERM must end it with 0."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        process = Forked(_serve, workspace, release, port, out=log, environment=variables)
        try:
            wait_until(
                lambda: "started\n" in log.read_text() or process.poll() is not None, PATIENCE_S
            )
            assert process.poll() is None, log.read_text()
            yield TinyServer(process, port, log)
        finally:
            sys.stderr.write(log.read_text())  # pytest shows it where a test failed
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0


def _serve(workspace, release, port):
    def started():
        sys.stdout.write("started\n")
        sys.stdout.flush()

    serve(workspace, release, ("127.0.0.1", port), workers=2, started=started)
