"""The dashboard and the alert rules ask for what the code exports.

Every name, label and label value.
"""

import json
import re
from typing import get_args

import numpy as np
import promql_parser as promql
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from feature_repo.stores.feature_store import redis_client
from feature_repo.workspace import PROJECT_ROOT
from pipelines.streaming.lease import Lease
from serving.event_log.redis_stream import RedisStreamLog
from serving.event_log.stream_state import StreamStatePoller
from serving.http.app import create_app
from serving.impressions import ImpressionLog
from serving.observability.exposition import render
from serving.observability.metrics import BreakerState, Metrics
from serving.recommender.candidates import SOURCES
from serving.recommender.results import Degradation
from tests.support.event_log import event

FOLDER = PROJECT_ROOT / "docs" / "grafana"
DASHBOARD = json.loads((FOLDER / "funnel.json").read_text())
RULES = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
PROMETHEUS = {"instance", "job", "le"}
"""Labels that Prometheus adds, and the one of every histogram."""

QUERIES = {
    **{f"{p['title']} {t['refId']}": t["expr"] for p in PANELS for t in p["targets"]},
    **{f"note {a['name']}": a["expr"] for a in DASHBOARD["annotations"]["list"]},
    **{rule["alert"]: rule["expr"] for rule in RULES},
}
ENDPOINTS = ("/v1/recommendations", "/v1/events", "/healthz", "/readyz", "/metrics", "unknown")


@pytest.fixture(scope="module")
def exported(workspace, tmp_path_factory):
    """Return the label sets of every sample that a server in use exports, by name."""
    metrics = Metrics()
    for status in (200, 404, 422, 429, 500, 503):
        for endpoint in ENDPOINTS:
            metrics.answered(endpoint, status, 0.01)
    metrics.degrade(get_args(Degradation))
    metrics.observe_age("user_recent", 1.0)
    metrics.proposed(np.array([1], dtype=np.uint8))
    metrics.show([SOURCES])
    metrics.serving("r1")
    metrics.items_read(1.0)
    metrics.index_recall.set(1.0)
    metrics.spare_rows.set(1.0)
    metrics.breaker("redis", get_args(BreakerState)[0])
    ImpressionLog(tmp_path_factory.mktemp("impressions"), metrics.impressions).close()
    lease = Lease(redis_client(workspace))
    lease.acquire()
    RedisStreamLog(workspace).append([event()])
    poller = StreamStatePoller(workspace)
    poller.poll()
    metrics.at_scrape.append(poller)
    found = {}
    for family in text_string_to_metric_families(render(metrics).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    lease.release()
    return found


def parsed(query):
    """Return a query as a tree.

    It must be valid PromQL once Grafana has filled its variables in.
    """
    return promql.parse(query.replace("$__rate_interval", "5m").replace("$instance", ".*"))


def nodes(tree, kind):
    found = []
    promql.walk(tree, lambda node: found.append(node) if isinstance(node, kind) else None)
    return found


def fits(matcher, labels):
    value = labels.get(matcher.name, "")
    if matcher.op in (promql.MatchOp.Equal, promql.MatchOp.NotEqual):
        same = value == matcher.value
    else:
        same = re.fullmatch(matcher.value, value) is not None
    return same == (matcher.op in (promql.MatchOp.Equal, promql.MatchOp.Re))


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_a_query_selects_what_is_exported(exported, query):
    tree = parsed(query)
    selectors = nodes(tree, promql.VectorSelector)
    assert selectors
    labels = set(PROMETHEUS)
    for selector in selectors:
        assert selector.name in exported, f"nobody exports {selector.name}"
        matchers = [m for m in selector.matchers.matchers if m.name not in PROMETHEUS]
        known = exported[selector.name]
        labels |= set(known[0])
        assert {m.name for m in matchers} <= set(known[0])
        assert any(all(fits(m, sample) for m in matchers) for sample in known), (
            f"{selector} selects nothing"
        )
    for aggregate in nodes(tree, promql.AggregateExpr):
        if aggregate.modifier:
            assert set(aggregate.modifier.labels) <= labels


@pytest.mark.parametrize("query", [query for query in QUERIES.values() if "_total" in query])
def test_counters_are_only_looked_at_through_their_rates(query):
    tree = parsed(query)
    counters = [s for s in nodes(tree, promql.VectorSelector) if s.name.endswith("_total")]
    rated = [m for call in nodes(tree, promql.Call) if call.func.name in ("rate", "increase")
             for m in nodes(call, promql.VectorSelector)]  # fmt: skip
    assert len([s for s in rated if s.name.endswith("_total")]) == len(counters)


def test_the_check_finds_what_is_wrong(exported):
    assert "funnel_degraded" not in exported
    with pytest.raises(AssertionError, match="nobody exports"):
        test_a_query_selects_what_is_exported(exported, "rate(funnel_degraded[5m])")
    with pytest.raises(AssertionError, match="selects nothing"):
        test_a_query_selects_what_is_exported(
            exported, 'rate(funnel_degraded_total{reason="tired"}[5m])'
        )
    with pytest.raises(ValueError, match="."):
        test_a_query_selects_what_is_exported(exported, "rate(funnel_degraded_total)")


def test_endpoints_in_queries_are_the_apps(workspace):
    paths = {route.path for route in create_app(workspace, release=None).routes}
    asked = {
        m.value
        for query in QUERIES.values()
        for s in nodes(parsed(query), promql.VectorSelector)
        for m in s.matchers.matchers
        if m.name == "endpoint" and m.op == promql.MatchOp.Equal
    }
    assert asked == {"/v1/recommendations", "/v1/events"}
    assert asked <= paths


def test_the_dashboard_can_be_imported():
    assert DASHBOARD["uid"] and DASHBOARD["title"] and DASHBOARD["schemaVersion"] >= 36
    everything = DASHBOARD["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken = set()
    for panel in everything:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + dx, place["y"] + dy)
            for dx in range(place["w"])
            for dy in range(place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == [
        "datasource",
        "instance",
    ]


def test_alerts_say_what_they_are():
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert re.fullmatch(r"\d+[mh]", rule.get("for", "1m"))
