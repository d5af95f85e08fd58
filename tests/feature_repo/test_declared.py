"""A user's ``features.py``: what it declares, and one sentence for whatever cannot be used."""

from pathlib import Path

import pytest
from feast import FeatureService, StreamFeatureView

from feature_repo.aggregates.definition import MICROS, Aggregate, AggregateView
from feature_repo.dataset import load_spec
from feature_repo.declared import BadDefinition, build, read_declared
from pipelines.workflow.data_sets import SPECS

SPEC = load_spec(SPECS / "synthetic.toml")
TABLES = Path("/nowhere/features")

SPEND = """
from datetime import timedelta

from feast import FeatureService, StreamFeatureView
from feast.aggregation import Aggregation

from feature_repo.declare import defaults, events, item, user

spend = StreamFeatureView(
    name="spend",
    entities=[user],
    source=events,
    timestamp_field="timestamp",
    tags={"event_types": "purchase"},
    aggregations=[
        Aggregation("value", "sum", time_window=timedelta(hours=1), name="spend_1h"),
        Aggregation("event_id", "count", name="purchases"),
    ],
)
ranking = FeatureService(name="ranking", features=[*defaults.ranking, spend])
"""


def declared(tmp_path, text):
    file = tmp_path / "features.py"
    file.write_text(text)
    return read_declared(file, SPEC, TABLES)


def test_an_aggregate_of_events_is_declared_once(tmp_path):
    found = declared(tmp_path, SPEND)
    types = ("purchase",)
    assert found.aggregates == (
        AggregateView(
            "spend",
            "user_id",
            (
                Aggregate("spend_1h", "sum", True, 3_600 * MICROS, types),
                Aggregate("purchases", "count", False, None, types),
            ),
        ),
    )
    assert found.ranking_numeric("user_id") == ("spend_1h", "purchases")
    assert found.ranking_numeric("item_id") == ()


def test_what_is_declared_is_registered_beside_the_built_in_views(tmp_path):
    file = tmp_path / "features.py"
    file.write_text(SPEND)
    plain = {(type(o), o.name) for o in build(SPEC, TABLES)}
    objects = build(SPEC, TABLES, declarations=file)
    assert {(type(o), o.name) for o in objects} - plain == {(StreamFeatureView, "spend")}
    (view,) = [o for o in objects if o.name == "spend"]
    assert [field.name for field in view.features] == ["spend_1h", "purchases", "spend_state"]
    assert view.batch_source.path == "/nowhere/features/spend"
    read = {
        service.name: [
            field.name
            for projection in service.feature_view_projections
            if projection.name == "spend"
            for field in projection.features
        ]
        for service in objects
        if isinstance(service, FeatureService)
    }
    assert read["ranking_v1"] == read["online_user_v1"] == ["spend_1h", "purchases"]
    assert read["user_tower_v1"] == []


def test_a_service_may_read_a_part_of_a_view(tmp_path):
    text = SPEND.replace("defaults.ranking, spend]", 'defaults.ranking, spend[["purchases"]]]')
    assert declared(tmp_path, text).ranking_numeric("user_id") == ("purchases",)


def test_a_view_that_no_service_names_is_computed_and_read_by_no_model(tmp_path):
    found = declared(tmp_path, SPEND.replace("*defaults.ranking, spend", "*defaults.ranking"))
    assert [view.name for view in found.aggregates] == ["spend"]
    assert found.ranking == ()


def test_the_version_follows_what_is_computed_and_nothing_else(tmp_path):
    version = declared(tmp_path, SPEND).version
    assert version == declared(tmp_path, f"# a comment\n{SPEND}").version
    assert version != declared(tmp_path, SPEND.replace("hours=1", "hours=2")).version
    assert read_declared(None, SPEC, TABLES).version == ""


WRONG = {
    "no such function": ('"sum"', '"median"', "function is one of .*'median'"),
    "no such column": ('"value"', '"prize"', "no column 'prize', only"),
    "sum of ids": ('"value"', '"item_id"', "'sum' takes column 'value'"),
    "a window of zero": ("hours=1", "hours=0", "at least a minute, or None for all time"),
    "seconds": ("hours=1", "seconds=59", "at least a minute, or None for all time"),
    "a slide": ("hours=1)", "hours=1), slide_interval=timedelta(minutes=5)", "slides by a six"),
    "unknown event type": ('"purchase"', '"buy"', r"event types \['buy'\] are not among"),
    "a name twice": ('"purchases"', '"spend_1h"', "the name 'spend_1h' is taken"),
    "a built-in feature": ('"purchases"', '"events_7d"', "the name 'events_7d' is taken"),
    "a built-in view": ('name="spend",', 'name="user_seen",', "the name 'user_seen' is taken"),
    "an attribute": ('"purchases"', '"price"', "the name 'price' is taken"),
    "a name with blanks": ('"purchases"', '"my purchases"', "small letters, digits and '_'"),
    "no entity": ("entities=[user]", "entities=[]", "its entity is one of"),
    "two entities": ("entities=[user]", "entities=[user, item]", "its entity is one of"),
    "no such name": ("source=events", "source=clicks", "NameError: name 'clicks'"),
    "bad syntax": ("entities=[user]", "entities=[user", "SyntaxError"),
    "no such feature": ("spend]", 'spend[["spent"]]]', r"view 'spend' has no \['spent'\]"),
    "nothing aggregated": ("aggregations=[", "aggregations=[][:0] and [", "it has no aggregations"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_definition_that_cannot_be_used_is_one_sentence(tmp_path, case):
    right, wrong, sentence = WRONG[case]
    assert right in SPEND
    with pytest.raises(BadDefinition, match=sentence) as refused:
        declared(tmp_path, SPEND.replace(right, wrong, 1))
    assert str(tmp_path / "features.py") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_another_source_than_the_event_log_is_refused(tmp_path):
    clicks = "from feast import PushSource\n"
    clicks += "clicks = PushSource(name='clicks', batch_source=events.batch_source)\n"
    text = SPEND.replace("source=events", "source=clicks")
    text = text.replace("spend = Stream", f"{clicks}spend = Stream")
    with pytest.raises(BadDefinition, match="its source is 'events' of feature_repo.declare"):
        declared(tmp_path, text)


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(BadDefinition, match="gone.py: no such file, though dataset.toml names it"):
        read_declared(tmp_path / "gone.py", SPEC, TABLES)


def test_the_defaults_need_a_data_set():
    from feature_repo.declare import defaults

    with pytest.raises(RuntimeError, match="only while Funnel reads a features.py"):
        _ = defaults.ranking
