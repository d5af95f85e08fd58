"""The app's middleware in one list: the order in which a request passes through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from serving.http.access import AccessMiddleware
from serving.http.body_limit import MAX_BODY, BodyLimitMiddleware
from serving.http.draining import DrainingMiddleware
from serving.http.executors import Executor
from serving.http.fast_path import FastPathMiddleware, FastRoute
from serving.http.headers import SecurityHeadersMiddleware, cors_options
from serving.http.hosts import LocalClientsMiddleware
from serving.http.keys import KeyRing
from serving.http.load_shedding import LoadSheddingMiddleware
from serving.http.problem_details import ProblemDetailsMiddleware
from serving.http.telemetry import TelemetryMiddleware
from serving.observability.metrics import Metrics

if TYPE_CHECKING:
    from serving.observability.tracing import Tracing


def middleware(
    *,
    executors: Mapping[str, Executor],
    fast_routes: Mapping[str, FastRoute],
    keys: KeyRing | None,
    metrics: Metrics,
    tracing: Tracing | None = None,
    origins: Sequence[str] = (),
    hosts: Sequence[str] = (),
    max_body: int = MAX_BODY,
) -> list[Middleware]:
    """Return the app's middleware, the outermost first.

    Args:
        executors: by path; a path is refused while its executor is full.
        fast_routes: by path, those that skip FastAPI's routing.
        keys: API keys; None: everybody may do everything.
        metrics: what requests are counted in.
        tracing: None: no traces.
        origins: those of web pages that may call from a browser.
        hosts: names that the server answers to without keys, beside those of this machine.
        max_body: limit of a request's body in bytes.

    """
    cors = [Middleware(CORSMiddleware, **cors_options(origins))] if origins else []
    # Nothing else keeps the pages of a browser on this machine out.
    local = [Middleware(LocalClientsMiddleware, hosts=hosts)] if keys is None else []
    return [
        # Every answer has these headers, refusals included.
        Middleware(SecurityHeadersMiddleware),
        Middleware(DrainingMiddleware),
        # Before any work is done for the request.
        Middleware(LoadSheddingMiddleware, executors=executors, shed=metrics.shed),
        # Sees what all layers below it answer.
        Middleware(TelemetryMiddleware, metrics=metrics, tracing=tracing),
        # Browsers send no key with a preflight, and must be able to read refusals.
        *cors,
        # Turns the errors of all layers below it into answers.
        Middleware(ProblemDetailsMiddleware),
        *local,
        Middleware(AccessMiddleware, keys=keys),
        Middleware(BodyLimitMiddleware, limit=max_body),
        Middleware(FastPathMiddleware, routes=fast_routes),
    ]


def install(app: FastAPI, layers: Sequence[Middleware]) -> None:
    """Put middleware around an app, the outermost first."""
    for layer in reversed(layers):  # add_middleware puts each around those before
        app.add_middleware(layer.cls, *layer.args, **layer.kwargs)
