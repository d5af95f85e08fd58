"""A user's ``features.py``: what it declares, and one sentence for whatever cannot be used."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureService, StreamFeatureView

from feature_repo.aggregates.definition import Aggregate, AggregateView
from feature_repo.dataset import load_spec
from feature_repo.declarations.checks import BadDefinition
from feature_repo.declarations.feast_objects import build
from feature_repo.declarations.reading import read_declared
from feature_repo.on_demand.view import OnDemandView
from feature_repo.units import MICROS
from pipelines.workflow.data_sets import SPECS

PLAIN = load_spec(SPECS / "synthetic.toml")
CONTEXT = {"page": "categorical", "speed": "numeric"}
SPEC = PLAIN.model_copy(update={"events": PLAIN.events.model_copy(update={"context": CONTEXT})})
TABLES = Path("/nowhere/features")

SPEND = """
from datetime import timedelta

from feast import FeatureService, StreamFeatureView
from feast.aggregation import Aggregation

from feature_repo.declare import daily, defaults, events, item, last_distinct, top, user

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
    assert [view for view in found.aggregates if view.name == "spend"] == [
        AggregateView(
            "spend",
            "user_id",
            (
                Aggregate("spend_1h", "sum", "value", 3_600 * MICROS, types),
                Aggregate("purchases", "count", "event_id", None, types),
            ),
        ),
    ]
    assert found.ranking_numeric("user_id") == (
        ("spend", "spend_1h"),
        ("spend", "purchases"),
    )
    assert found.ranking_numeric("item_id") == ()


def test_tags_say_which_events_count_and_whether_days_are_whole(tmp_path):
    text = SPEND.replace("hours=1", "days=1").replace(
        'tags={"event_types": "purchase"}',
        'tags=daily | {"where": "speed >= 2", "event_types.purchases": "view, like",\n'
        "        'where.pages': \"page != 'home'\"}",
    )
    text = text.replace(
        '        Aggregation("event_id", "count", name="purchases"),\n',
        '        Aggregation("event_id", "count", name="purchases"),\n'
        '        top("item_category", 3, name="genres"),\n'
        '        last_distinct("page", 5, name="pages"),\n',
    )
    found = declared(tmp_path, text).views[0]
    day = 24 * 3_600 * MICROS
    assert found.aggregates.aggregates == (
        Aggregate("spend_1h", "sum", "value", day, (), "speed >= 2", daily=True),
        Aggregate(
            "purchases", "count", "event_id", None, ("view", "like"), "speed >= 2", daily=True
        ),
        Aggregate("genres", "top", "item_category", None, (), "speed >= 2", limit=3, daily=True),
        Aggregate("pages", "last_distinct", "page", None, (), "page != 'home'", 5, daily=True),
    )
    assert found.numeric == ("spend_1h", "purchases")
    assert "spend_state" not in {field.name for field in found.registered.features}


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
    assert declared(tmp_path, text).ranking_numeric("user_id") == (("spend", "purchases"),)


def test_a_view_that_no_service_names_is_computed_and_read_by_no_model(tmp_path):
    found = declared(tmp_path, SPEND.replace("*defaults.ranking, spend", "*defaults.ranking"))
    assert found.aggregates[len(found.built_in) :] == (found.views[0].aggregates,)
    assert found.ranking == ()


def test_the_version_follows_what_is_computed_and_nothing_else(tmp_path):
    version = declared(tmp_path, SPEND).version
    assert version == declared(tmp_path, f"# a comment\n{SPEND}").version
    assert version != declared(tmp_path, SPEND.replace("hours=1", "hours=2")).version
    assert version != read_declared(None, SPEC, TABLES).version


TAGS = 'tags={"event_types": "purchase"}'
WRONG = {
    "no such function": ('"sum"', '"median"', "function is one of .*'median'"),
    "no such column": ('"value"', '"prize"', "no column 'prize', only"),
    "sum of ids": ('"value"', '"item_id"', "'sum' takes a column of numbers"),
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
    "an hour of an item": (
        "entities=[user]", "entities=[item]", r"windows of \['spend_1h'\] are shorter than a day"
    ),
    "two entities": ("entities=[user]", "entities=[user, item]", "its entity is one of"),
    "no such name": ("source=events", "source=clicks", "NameError: name 'clicks'"),
    "bad syntax": ("entities=[user]", "entities=[user", "SyntaxError"),
    "no such feature": ("spend]", 'spend[["spent"]]]', r"view 'spend' has no \['spent'\]"),
    "a ttl": ("entities=[user]", "entities=[user], ttl=timedelta(1)", "its values have no ttl"),
    "a list without length": ('"sum"', '"top"', "a list has a length of 1 to 10,000"),
    "a sum with a length": ('"sum"', '"sum:3"', "only a list has one"),
    "a list of numbers": ('"sum"', '"last_distinct:3"', "takes a column of ids or text"),
    "a trend of all time": ('"count"', '"trend"', "a trend has a time window of at least"),
    "half days": (TAGS, "tags=daily | " + TAGS[5:], "are of whole days"),
    "another grain": (TAGS, 'tags={"grain": "hour"}', "its tag 'grain' is 'day'"),
    "a tag of nothing": (TAGS, 'tags={"where.spent": "value > 1"}', "of no aggregation: it has"),
    "no condition": (TAGS, 'tags={"where": "value >"}', "is not a condition such as"),
    "a condition on no column": (TAGS, 'tags={"where": "prize > 1"}', "no column 'prize' to comp"),
    "text compared as number": (TAGS, 'tags={"where": "page > 1"}', "'page' holds text"),
    "a number compared as text": (TAGS, "tags={'where': \"speed == '1'\"}", "'speed' holds num"),
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


LOYALTY = """
from feast import FeatureService, FeatureView, FileSource

from feature_repo.declare import defaults, user

loyalty = FeatureView(
    name="loyalty",
    entities=[user],
    source=FileSource(path="loyalty.parquet", timestamp_field="known_from"),
)
ranking = FeatureService(name="ranking", features=[*defaults.ranking, loyalty])
"""


def loyalty_table(tmp_path, **changed):
    """Write a table of two users beside the features.py; a column of None is left out."""
    columns = {
        "user_id": pa.array(["u1", "u2"]),
        "known_from": pa.array([10**15, 2 * 10**15], pa.timestamp("us", tz="UTC")),
        "points": pa.array([1, None], pa.int64()),
        "discount": pa.array([0.5, 0.25], pa.float32()),
    } | changed
    table = pa.table({name: values for name, values in columns.items() if values is not None})
    pq.write_table(table, tmp_path / "loyalty.parquet")


def test_a_table_of_ones_own_is_read_with_the_columns_that_it_has(tmp_path):
    loyalty_table(tmp_path, level=pa.array(["gold", "none"]))
    text = LOYALTY.replace("loyalty]", 'loyalty[["points", "discount"]]]')
    found = declared(tmp_path, text)
    assert found.aggregates == found.built_in
    both = (("loyalty", "points"), ("loyalty", "discount"))
    assert found.ranking_numeric("user_id") == both
    (view,) = found.views
    types = {field.name: str(field.dtype) for field in view.registered.features}
    assert types == {"points": "Int64", "discount": "Float32", "level": "String"}
    assert view.registered.batch_source.path == str(tmp_path / "loyalty.parquet")
    loyalty_table(tmp_path, item_id=pa.array(["i1", "i2"]), user_id=None)
    assert declared(tmp_path, LOYALTY.replace("user", "item")).ranking_numeric("item_id") == both
    loyalty_table(tmp_path)
    # Without a choice the ranker reads all numbers.
    assert declared(tmp_path, LOYALTY).ranking_numeric("user_id") == both


TABLES_AMISS = {
    "no such column of times": (LOYALTY.replace("known_from", "at"), {}, "no column 'at' of times"),
    "no such file": (LOYALTY.replace("loyalty.parquet", "x.parquet"), {}, "there is no table /"),
    "times as numbers": (LOYALTY, {"known_from": pa.array([1, 2])}, "is int64, not a timestamp"),
    "ids as numbers": (LOYALTY, {"user_id": pa.array([1, 2])}, "'user_id' is int64; ids are str"),
    "money": (
        LOYALTY,
        {"spent": pa.array([1, 2], pa.decimal128(10, 2))},
        "which Feast does not store: cast it, or name the other columns in a schema",
    ),
    "days": (LOYALTY, {"since": pa.array([1, 2], pa.date32())}, "'since' is date32.day., which Fe"),
    "no such column of making": (
        LOYALTY.replace('"known_from"', '"known_from", created_timestamp_column="made"'),
        {},
        "has no column 'made', only",
    ),
    "no ids": (LOYALTY, {"user_id": None}, "has no column 'user_id', only"),
    "a column's name": (LOYALTY, {"My Points": pa.array([1, 2])}, "'My Points': a name has small"),
    "a built-in name": (LOYALTY, {"events_7d": pa.array([1, 2])}, "'events_7d' is taken"),
    "lists for the ranker": (
        LOYALTY.replace("loyalty]", 'loyalty[["level"]]]'),
        {"level": pa.array([["gold"], ["none"]])},
        r"\['level'\] are of types that this model does not read",
    ),
    "text for a tower": (
        LOYALTY + "tower = FeatureService(name='user_tower', features=[loyalty[['level']]])",
        {"level": pa.array(["gold", "none"])},
        r"service 'user_tower': .*\['level'\] are of types",
    ),
}


@pytest.mark.parametrize("case", TABLES_AMISS)
def test_a_table_that_cannot_be_used_is_one_sentence(tmp_path, case):
    text, columns, sentence = TABLES_AMISS[case]
    loyalty_table(tmp_path, **columns)
    with pytest.raises(BadDefinition, match=sentence) as refused:
        declared(tmp_path, text)
    assert "\n" not in str(refused.value)


WIDER = {
    "Float64": pa.array([1, 2], pa.int64()),
    "Float32": pa.array([1, 2], pa.float64()),
    "Int64": pa.array([1, 2], pa.int16()),
    "String": pa.array(["1", "2"], pa.large_string()),
    "Array(types.Int64)": pa.array([[1], [2]], pa.large_list(pa.int64())),
}


@pytest.mark.parametrize("declares", WIDER)
def test_a_declared_type_may_be_wider_than_the_stored_one(tmp_path, declares):
    loyalty_table(tmp_path, points=WIDER[declares])
    schema = f"schema=[Field(name='points', dtype=types.{declares})],\n    source=File"
    text = LOYALTY.replace("from feast import", "from feast import Field, types,")
    text = text.replace("*defaults.ranking, loyalty", "*defaults.ranking")
    (view,) = declared(tmp_path, text.replace("source=File", schema)).views
    assert [field.name for field in view.registered.features] == ["points"]


def test_a_file_that_is_no_parquet_is_one_sentence(tmp_path):
    (tmp_path / "loyalty.parquet").write_text("user_id,points")
    with pytest.raises(BadDefinition, match="loyalty.parquet cannot be read as Parquet: "):
        declared(tmp_path, LOYALTY)


@pytest.mark.parametrize(
    ("declares", "stored", "sentence"),
    [("Int64", pa.float64(), "'points' is Float64, declared as Int64"),
     ("Bool", pa.int64(), "'points' is Int64, declared as Bool"),
     ("String", pa.decimal128(10, 2), r"'points' is decimal128\(10, 2\), which Feast does not st"),
     ("Int64", None, "has no column 'points', only")],
)  # fmt: skip
def test_a_declared_column_is_in_the_table_and_of_its_type(tmp_path, declares, stored, sentence):
    loyalty_table(tmp_path, points=None if stored is None else pa.array([1, 2], stored))
    schema = f"schema=[Field(name='points', dtype=types.{declares})],\n    source=File"
    text = LOYALTY.replace("from feast import", "from feast import Field, types,")
    with pytest.raises(BadDefinition, match=sentence):
        declared(tmp_path, text.replace("source=File", schema))


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(BadDefinition, match="gone.py: no such file, though dataset.toml names it"):
        read_declared(tmp_path / "gone.py", SPEC, TABLES)


def test_the_defaults_need_a_data_set():
    from feature_repo.declare import defaults

    with pytest.raises(RuntimeError, match="only while Funnel reads a features.py"):
        _ = defaults.ranking


ON_DEMAND = (
    SPEND.replace(
        "from feast.aggregation",
        "from feast import Field, RequestSource\n"
        "from feast.on_demand_feature_view import on_demand_feature_view\n"
        "from feast.types import Array, Float64, Int64, String\n"
        "from numpy import log1p\nimport pandas as pd\n\n"
        "from feast.aggregation",
    )
    + """
page = RequestSource(name="visit", schema=[Field(name="page", dtype=String)])
RATE = 2.0

@on_demand_feature_view(
    sources=[spend, defaults["item_profile"][["price"]], page],
    schema=[Field(name="afford", dtype=Float64), Field(name="at_home", dtype=Float64)],
)
def wallet(inputs: pd.DataFrame) -> pd.DataFrame:
    out = pd.DataFrame()  # a comment stays
    out["afford"] = log1p(inputs["spend_1h"]) - inputs["item_profile__price"]
    out["at_home"] = (inputs["page"] == "home").astype(float)
    return out

ranking = FeatureService(name="ranking", features=[*defaults.ranking, wallet[["at_home"]]])
"""
)


def test_a_feature_of_the_moment_is_declared_as_in_feast(tmp_path):
    found = declared(tmp_path, ON_DEMAND)
    (view,) = found.ranking_on_demand
    assert (view.name, view.features, view.mode) == ("wallet", ("at_home",), "pandas")
    assert [(i.owner, i.view, i.name) for i in view.inputs] == [
        ("user", "spend", "spend_1h"),
        ("user", "spend", "purchases"),
        ("item", "item_profile", "price"),
        ("request", "visit", "page"),
    ]
    assert view.function.imports == (("log1p", "numpy:log1p"), ("pd", "pandas"))
    assert view.function.source.startswith("def wallet(") and "# a comment" in view.function.source
    assert found.user_inputs == (("spend", "spend_1h"), ("spend", "purchases"))
    assert found.ranking == (("wallet", ("at_home",)),)


def test_a_function_goes_with_a_release_as_text_and_computes_the_same(tmp_path):
    (view,) = declared(tmp_path, ON_DEMAND).ranking_on_demand
    (tmp_path / "features.py").unlink()
    loaded = OnDemandView.from_dict(json.loads(json.dumps(view.to_dict())))
    assert loaded == view
    values = [
        np.array([1.0, np.nan]),
        np.array([0.0, 0.0]),
        np.array([2.0, 3.0]),
        np.array(["home", None], dtype=object),
    ]
    assert loaded.compute(values, 2).tolist() == [[1.0], [0.0]]
    both = replace(loaded, features=("afford", "at_home")).compute(values, 2)
    assert both[0, 0] == pytest.approx(np.log1p(1.0) - 2.0)
    assert np.isnan(both[1, 0]) and both[1, 1] == 0.0


def test_a_function_may_take_and_return_lists(tmp_path):
    text = ON_DEMAND[: ON_DEMAND.index("@on_demand")] + PYTHON
    (view,) = declared(tmp_path, text).ranking_on_demand
    values = [np.array([3.0, np.nan]), np.array([1.0, 1.0])]
    found = view.compute(values, 2)
    assert found[0, 0] == 2.0 and np.isnan(found[1, 0])


def test_a_built_in_view_that_no_model_reads_is_given_to_one_by_its_name(tmp_path):
    names = [f"{kind}_count_{w}" for w in ("10m", "1h", "24h") for kind in SPEC.event_types]
    recent = 'defaults["user_recent"]'
    text = SPEND.replace("*defaults.ranking, spend", f"*defaults.ranking, {recent}")
    text += f'tower = FeatureService(name="user_tower", features=[{recent}[["view_count_1h"]]])\n'
    found = declared(tmp_path, text)
    assert found.ranking_numeric("user_id") == tuple(("user_recent", name) for name in names)
    assert found.user_tower == (("user_recent", "view_count_1h"),)
    read = {
        service.name: {
            field.name
            for projection in service.feature_view_projections
            if projection.name == "user_recent"
            for field in projection.features
        }
        for service in build(SPEC, TABLES, declarations=tmp_path / "features.py")
        if isinstance(service, FeatureService)
    }
    assert read["ranking_v1"] == read["online_user_v1"] == set(names)
    assert read["user_tower_v1"] == {"view_count_1h"}


def test_the_user_tower_reads_what_is_computed_of_users_and_requests(tmp_path):
    text = ON_DEMAND.replace('defaults["item_profile"][["price"]], ', "").replace(
        ' - inputs["item_profile__price"]', ""
    )
    text += 'tower = FeatureService(name="user_tower", features=[wallet[["at_home"]]])\n'
    found = declared(tmp_path, text)
    assert found.user_tower == (("wallet", "at_home"),)
    assert [(view.name, view.features) for view in found.tower_views] == [("wallet", ("at_home",))]
    assert found.tower_inputs == (("spend", "spend_1h"), ("spend", "purchases"))
    services = {
        service.name: [
            f"{projection.name}:{field.name}"
            for projection in service.feature_view_projections
            for field in projection.features
        ]
        for service in build(SPEC, TABLES, declarations=tmp_path / "features.py")
        if isinstance(service, FeatureService)
    }
    assert services["user_tower_v1"][-2:] == ["spend:spend_1h", "spend:purchases"]


PYTHON = """
@on_demand_feature_view(
    sources=[spend], schema=[Field(name="change", dtype=Float64)], mode="python"
)
def change(inputs):
    pairs = zip(inputs["spend_1h"], inputs["purchases"])
    return {"change": [None if a is None or b is None else a - b for a, b in pairs]}

ranking = FeatureService(name="ranking", features=[change])
"""

BAD_FUNCTIONS = {
    "a value of the file": ("log1p(inputs", "RATE * log1p(inputs", "reads 'RATE' of the file"),
    "a function of the file": ("RATE = 2.0", "def twice(x): return x", ""),
    "an unknown name": ("log1p(inputs", "log2p(inputs", "uses 'log2p', which is not defined"),
    "a misspelt column": ('inputs["page"]', 'inputs["pages"]', "fails on sample .*'pages'"),
    "it raises": (
        "    out = pd",
        "    raise OSError(5)\n    out = pd",
        "fails on sample .*OSError",
    ),
    "another length": ("return out", "return out[:1]", "shape .1,. for 3 rows"),
    "no such feature": ('out["at_home"] =', 'out["at_hom"] =', "fails on sample .*at_home"),
    "text": ('name="at_home", dtype=Float64', 'name="at_home", dtype=String', "numbers only"),
    "another type": ('name="at_home", dtype=Float64', 'name="at_home", dtype=Int64', "fails on"),
    "a taken name": ('name="afford"', 'name="events_7d"', "name 'events_7d' is taken"),
    "of no view": ('defaults["item_profile"][["price"]]', 'defaults["user_seen"]', "not one of"),
    "unknown built-in": ('"item_profile"][', '"item_profil"][', "no built-in view 'item_profil'"),
    "a field that no event has": ('Field(name="page"', 'Field(name="city"', "not declared: add it"),
    "a field of another type": ('Field(name="page"', 'Field(name="speed"', "and numeric in"),
    "a name of the context": ('name="afford"', 'name="speed"', "name 'speed' is taken"),
    "the ranker's own name": ('name="afford"', 'name="tower_score"', "'tower_score' is taken"),
    "an attribute's column": ('name="afford"', 'name="item_price"', "'item_price' is taken"),
    "an unreadable column": (
        'defaults["item_profile"][["price"]]',
        'defaults["item_activity"][["first_event_at"]]',
        r"reads \['first_event_at'\] of view 'item_activity', where requests have",
    ),
    "missing text": (
        '(inputs["page"] == "home").astype(float)',
        'inputs["page"].map(lambda page: len(page))',
        "fails on sample .*NoneType",
    ),
    "text methods": (
        '(inputs["page"] == "home").astype(float)',
        'inputs["page"].str.startswith("h").astype(float)',
        "",
    ),
    "a view of no service": ("wallet[[", 'defaults["user_seen"], wallet[[', "neither a variable"),
    "a misspelt service": (
        'name="ranking", features=[*defaults.ranking, wallet',
        'name="rankings", features=[*defaults.ranking, wallet',
        "service 'rankings': did you mean 'ranking', which a model reads",
    ),
    "singleton": ("    sources=[spend,", "    singleton=True, sources=[spend,", "singleton"),
    "stored": ("    sources=[spend,", "    write_to_online_store=True, sources=[spend,", "."),
    "a closure": (
        "@on_demand_feature_view(\n    sources=[spend, def",
        "def make(rate):\n  def inner(inputs):\n    return inputs * rate\n  return inner\n"
        "inner = on_demand_feature_view(sources=[spend], "
        "schema=[Field(name='x1', dtype=Float64)])(make(2))\n"
        "@on_demand_feature_view(\n    sources=[spend, def",
        r"reads \['rate'\] of the function around it",
    ),
    "a lambda": (
        "@on_demand_feature_view(\n    sources=[spend, def",
        "short = on_demand_feature_view(name='short', sources=[spend], "
        "schema=[Field(name='x1', dtype=Float64)])(lambda inputs: inputs)\n"
        "@on_demand_feature_view(\n    sources=[spend, def",
        "defined with 'def'",
    ),
}


@pytest.mark.parametrize("name", BAD_FUNCTIONS)
def test_a_function_that_cannot_be_used_is_refused_in_a_sentence(name, tmp_path):
    old, new, message = BAD_FUNCTIONS[name]
    text = ON_DEMAND.replace(old, new)
    assert text != ON_DEMAND
    if not message:
        declared(tmp_path, text)
        return
    with pytest.raises(BadDefinition, match=message) as refused:
        declared(tmp_path, text)
    assert "\n" not in str(refused.value).strip()


def test_each_tower_reads_what_its_service_names(tmp_path):
    text = SPEND + (
        'user_tower = FeatureService(name="user_tower", features=[*defaults.user_tower, spend])\n'
    )
    found = declared(tmp_path, text)
    assert found.user_tower == (("spend", "spend_1h"), ("spend", "purchases"))
    assert found.item_tower == ()
    services = {
        o.name: [f"{p.name}:{f.name}" for p in o.feature_view_projections for f in p.features]
        for o in build(SPEC, TABLES, declarations=tmp_path / "features.py")
        if isinstance(o, FeatureService)
    }
    assert services["user_tower_v1"][-2:] == ["spend:spend_1h", "spend:purchases"]
    swapped = text.replace(
        'name="user_tower", features=[*defaults.user_tower',
        'name="item_tower", features=[*defaults.item_tower',
    )
    with pytest.raises(BadDefinition, match="service 'item_tower': view 'spend' is not of its"):
        declared(tmp_path, swapped)
    computed = ON_DEMAND + 'tower = FeatureService(name="user_tower", features=[wallet])\n'
    with pytest.raises(BadDefinition, match="'wallet' reads items, which the user tower does not"):
        declared(tmp_path, computed)


def test_a_built_in_view_or_feature_is_left_out_by_not_naming_it(tmp_path):
    text = SPEND.replace(
        "*defaults.ranking, spend]",
        "*[v for v in defaults.ranking if v.name not in ('user_affinity', 'item_profile',"
        " 'user_profile')], defaults['item_profile'][['price', 'brand']], spend]",
    )
    found = declared(tmp_path, text)
    columns = found.left_out_columns(SPEC)
    assert columns >= {"category_share", "user_country", "item_genre", "item_title"}
    assert not columns & {"item_price", "item_brand", "events_7d", "hour_of_day", "item_trend"}
    (service,) = [
        o
        for o in build(SPEC, TABLES, declarations=tmp_path / "features.py")
        if o.name == "ranking_v1"
    ]
    read = {p.name: [f.name for f in p.features] for p in service.feature_view_projections}
    assert sorted(read["item_profile"]) == ["brand", "price"]
    assert read["spend"] == ["spend_1h", "purchases"]
    assert "user_affinity" not in read and "user_activity" in read
    assert declared(tmp_path, SPEND).left_out == ()


def test_parts_of_views_may_be_variables(tmp_path):
    text = ON_DEMAND.replace(
        "@on_demand_feature_view",
        'price = defaults["item_profile"][["price"]]\nfew = spend[["purchases"]]\n\n'
        "@on_demand_feature_view",
    ).replace(
        'sources=[spend, defaults["item_profile"][["price"]], page]', "sources=[spend, price, page]"
    )
    text = text.replace("wallet[[", "few, wallet[[")
    found = declared(tmp_path, text)
    assert [view.name for view in found.views] == ["spend"]
    assert found.ranking_numeric("user_id") == (("spend", "purchases"),)


def test_a_function_may_use_whatever_its_file_imports(tmp_path):
    text = ON_DEMAND.replace(
        "import pandas as pd",
        (
            "import pandas as pd\nimport xml.etree.ElementTree\nfrom math import pi\n"
            "from scipy.special import expit as squash"
        ),
    ).replace(
        "    out = pd.DataFrame()",
        (
            "    out = pd.DataFrame()\n    assert xml.etree.ElementTree.Element('a').tag == 'a'\n"
            "    inputs['spend_1h'] = squash(inputs['spend_1h']) * pi\n"
        ),
    )
    (view,) = declared(tmp_path, text).ranking_on_demand
    assert view.function.imports == (
        ("log1p", "numpy:log1p"), ("pd", "pandas"), ("pi", "math:pi"),
        ("squash", "scipy.special:expit"), ("xml", "xml"), ("xml.etree", "xml.etree"),
        ("xml.etree.ElementTree", "xml.etree.ElementTree"),
    )  # fmt: skip
    script = (
        "import json, sys, numpy as np\n"
        "from feature_repo.on_demand.view import OnDemandView\n"
        "view = OnDemandView.from_dict(json.loads(sys.stdin.read()))\n"
        "print(view.compute([np.array([1.0])] * 3 + [np.array(['home'], dtype=object)], 1))\n"
    )
    raw = json.dumps(view.to_dict())
    ran = subprocess.run(
        [sys.executable, "-c", script], input=raw, capture_output=True, text=True, check=False
    )
    assert ran.stdout == "[[1.]]\n", ran.stderr
