"""The API against its own description, with whatever schemathesis makes up: it keeps what it says."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from feature_repo.stores.feature_store import redis_client
from tests.support.api_server import start_server, stop

EXAMPLES = 40


@pytest.fixture(scope="module")
def api(built):
    process, client = start_server(built.workspace)
    client.close()
    yield schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")
    stop(process)
    with redis_client(built.workspace) as redis:  # whatever it added and removed
        redis.delete(*redis.keys("funnel:items:*") or ["nothing"])


def test_the_api_does_what_it_says(api):
    met = []
    for operation in (found.ok() for found in api.get_all_operations()):

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def holds(case):
            case.call_and_validate()

        holds()
        met.append(operation.label)
    assert {"POST /v1/recommendations", "POST /v1/recommendations:batch", "POST /v1/events"} <= set(
        met
    )
