"""The API against its own description: schemathesis makes up requests, and answers must conform."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from feature_repo.workspace import Workspace
from tests.support.tiny_release import Tiny
from tests.support.tiny_server import tiny_server

EXAMPLES = 40


@pytest.fixture(scope="module")
def api(registered_workspace: Workspace, tiny: Tiny) -> Iterator[schemathesis.BaseSchema]:
    with tiny_server(registered_workspace, tiny.folder) as server:
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_the_api_does_what_it_says(api: schemathesis.BaseSchema) -> None:
    checked = set()
    for operation in (result.ok() for result in api.get_all_operations()):

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def conforms(case: schemathesis.Case) -> None:
            case.call_and_validate()

        conforms()
        checked.add(operation.label)
    assert {
        "POST /v1/recommendations",
        "POST /v1/recommendations:batch",
        "POST /v1/events",
    } <= checked
