"""The order in which a request passes through the middleware."""

from __future__ import annotations

import pytest
from starlette.middleware.cors import CORSMiddleware

from feature_repo.workspace import Workspace
from serving.http.access import AccessMiddleware
from serving.http.app import create_app
from serving.http.body_limit import BodyLimitMiddleware
from serving.http.draining import DrainingMiddleware
from serving.http.fast_path import FastPathMiddleware
from serving.http.headers import SecurityHeadersMiddleware
from serving.http.hosts import LocalClientsMiddleware
from serving.http.load_shedding import LoadSheddingMiddleware
from serving.http.problem_details import ProblemDetailsMiddleware
from serving.http.telemetry import TelemetryMiddleware
from tests.support.tiny_release import Tiny

ORDER = [
    SecurityHeadersMiddleware,
    DrainingMiddleware,
    LoadSheddingMiddleware,
    TelemetryMiddleware,
    ProblemDetailsMiddleware,
    LocalClientsMiddleware,
    AccessMiddleware,
    BodyLimitMiddleware,
    FastPathMiddleware,
]


def order(workspace: Workspace, tiny: Tiny) -> list[object]:
    return [layer.cls for layer in create_app(workspace, tiny.release).user_middleware]


def test_middleware_from_the_outermost_to_the_innermost(workspace: Workspace, tiny: Tiny) -> None:
    assert order(workspace, tiny) == ORDER


def test_cors_stands_outside_of_what_refuses(
    workspace: Workspace, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUNNEL_CORS_ORIGINS", "https://shop.example")
    outside_problems = ORDER.index(ProblemDetailsMiddleware)
    expected = [*ORDER[:outside_problems], CORSMiddleware, *ORDER[outside_problems:]]
    assert order(workspace, tiny) == expected
