"""Two forked workers on one port with the real metrics, in the way of ``funnel serve``; one that dies is replaced."""

import os
import socket
import sys
import time

import feast  # noqa: F401 - as in the real server, where it may come first
import uvicorn
from fastapi import FastAPI, Response

from serving.http.telemetry import TelemetryMiddleware
from serving.observability.exposition import render
from serving.observability.metrics import Metrics
from serving.observability.multiprocess import shared_by_workers


def create():
    metrics = Metrics()
    metrics.serving("r1")
    metrics.items_read(time.time() - 100)
    app = FastAPI()
    app.add_middleware(TelemetryMiddleware, metrics=metrics)

    @app.get("/pid")
    async def pid():
        return os.getpid()

    @app.get("/metrics")
    def exposition():
        return Response(render(metrics))

    return app


def work(listening):
    if pid := os.fork():
        return pid
    uvicorn.Server(uvicorn.Config(create(), log_level="error")).run(sockets=[listening])
    os._exit(0)


def main():
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.set_inheritable(True)
    with shared_by_workers() as folder:
        workers = {work(listening), work(listening)}
        sys.stdout.write(f"{listening.getsockname()[1]} {folder}\n")
        sys.stdout.flush()
        while True:
            workers.remove(os.wait()[0])
            time.sleep(1.0)
            workers.add(work(listening))


if __name__ == "__main__":
    main()
