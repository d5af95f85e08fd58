"""Two workers of the product's supervisor with its metrics.

Their app says which of them answers.
"""

import os
import sys
import time

from fastapi import FastAPI, Response

from serving.http.telemetry import TelemetryMiddleware
from serving.observability.exposition import render
from serving.observability.metrics import Metrics
from serving.observability.multiprocess import shared_folder
from serving.process.listener import listen
from serving.process.supervisor import run_workers


def create_app():
    metrics = Metrics()
    metrics.serving("r1")
    metrics.items_read(time.time() - 100)
    app = FastAPI()
    app.state.draining = False
    app.add_middleware(TelemetryMiddleware, metrics=metrics)

    @app.get("/pid")
    async def pid():
        return os.getpid()

    @app.get("/metrics")
    def exposition():
        return Response(render(metrics))

    return app


def main():
    listening = listen(("127.0.0.1", 0))
    port = listening.getsockname()[1]

    def started():
        sys.stdout.write(f"{port} {shared_folder()}\n")
        sys.stdout.flush()

    run_workers(create_app, listening, 2, started=started)
