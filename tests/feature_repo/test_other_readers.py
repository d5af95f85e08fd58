"""What a ``features.py`` declares for others than Funnel's models: services and permissions."""

from pathlib import Path

import pytest
from feast import FeatureService

from feature_repo.dataset import load_spec
from feature_repo.declarations.checks import BadDefinition
from feature_repo.declarations.feast_objects import build
from feature_repo.declarations.reading import read_declared
from pipelines.workflow.data_sets import SPECS

SPEC = load_spec(SPECS / "synthetic.toml")
TABLES = Path("/nowhere/features")
SPEND = """
from datetime import timedelta

from feast import FeatureService, FeatureView, FileSource, StreamFeatureView
from feast.aggregation import Aggregation

from feature_repo.declare import defaults, events, user

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


def declared(folder, text):
    (folder / "features.py").write_text(text)
    return read_declared(folder / "features.py", SPEC, TABLES)


OTHER = (
    SPEND
    + """
price = FeatureService(
    name="prices",
    features=[spend, defaults["item_profile"][["price"]], "user_activity:events_7d"],
    tags={"team": "bi"},
    description="of the dashboard",
    owner="bi@example.org",
)
"""
)


def test_a_service_of_other_readers_is_registered_as_it_is(tmp_path):
    assert declared(tmp_path, OTHER).ranking == declared(tmp_path, SPEND).ranking
    (tmp_path / "features.py").write_text(OTHER)
    objects = build(SPEC, TABLES, declarations=tmp_path / "features.py")
    (service,) = [o for o in objects if o.name == "prices"]
    assert isinstance(service, FeatureService)
    assert [
        (projection.name, [field.name for field in projection.features])
        for projection in service.feature_view_projections
    ] == [
        ("spend", ["spend_1h", "purchases"]),
        ("item_profile", ["price"]),
        ("user_activity", ["events_7d"]),
    ]
    assert service.tags == {"team": "bi"} and service.owner == "bi@example.org"
    assert service.description == "of the dashboard"


BAD_SERVICES = {
    "a tower's name, nearly": ('"prices"', '"user_towers"', "did you mean 'user_tower'"),
    "in other letters": ('"prices"', '"Ranking"', "did you mean 'ranking'"),
    "a part left out": ('"prices"', '"itemtower"', "did you mean 'item_tower'"),
    "a built-in service": ('"prices"', '"ranking_v1"', "the name is taken"),
    "the same name twice": ('"prices"', '"ranking"', "the name 'ranking' is taken"),
    "no such view": ('"user_activity:', '"user_activities:', "'user_activities' is neither a var"),
    "no such feature": (":events_7d", ":events_8d", r"'user_activity' has no \['events_8d'\]"),
    "a view that is no variable": (
        "features=[spend, defaults",
        'features=[FeatureView(name="hidden", entities=[user], '
        'source=FileSource(path="x", timestamp_field="t")), defaults',
        "view 'hidden' is neither a variable of the file nor one of",
    ),
    "text in a model's service": (
        "*defaults.ranking, spend]", '*defaults.ranking, "spend"]', "models read views, and feat"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_SERVICES)
def test_a_service_that_cannot_be_used_is_refused_in_a_sentence(name, tmp_path):
    old, new, message = BAD_SERVICES[name]
    text = OTHER.replace(old, new)
    assert new in text
    with pytest.raises(BadDefinition, match=message) as refused:
        declared(tmp_path, text)
    assert "\n" not in str(refused.value).strip()


PERMISSION = (
    SPEND
    + """
from feast.permissions.permission import Permission
from feast.permissions.policy import RoleBasedPolicy

bi = Permission(name="bi", types=[FeatureService], policy=RoleBasedPolicy(roles=["bi"]))
"""
)


def test_a_permission_is_registered_or_refused(tmp_path):
    (tmp_path / "features.py").write_text(PERMISSION)
    objects = build(SPEC, TABLES, declarations=tmp_path / "features.py")
    assert [o.policy.roles for o in objects if o.name == "bi"] == [["bi"]]
    without = PERMISSION.replace(', policy=RoleBasedPolicy(roles=["bi"])', "")
    with pytest.raises(BadDefinition, match="permission 'bi': Feast could not read it back"):
        declared(tmp_path, without)
    with pytest.raises(BadDefinition, match="the name 'bi' is taken"):
        declared(tmp_path, PERMISSION + "twice = Permission(name='bi', policy=bi.policy)\n")
