"""``serve`` with two workers over a release and a working folder, in a process of its own."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

from feature_repo.workspace import PROJECT_ROOT, Workspace
from serving.process.server import serve
from tests.support.api_server import free_port, workers_of

PATIENCE_S = 60.0


class TinyServer(NamedTuple):
    process: subprocess.Popen
    port: int

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
    command = [sys.executable, "-m", "tests.support.tiny_server"]
    command += [str(workspace.root), str(release), str(port)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT), **variables}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "started\n"
            yield TinyServer(process, port)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0


def main():
    root, release, port = sys.argv[1:]

    def started():
        sys.stdout.write("started\n")
        sys.stdout.flush()

    address = ("127.0.0.1", int(port))
    serve(Workspace(Path(root)), Path(release), address, workers=2, started=started)


if __name__ == "__main__":
    main()
