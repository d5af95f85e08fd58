"""The built-in features are declared in one place, and no other code lists them."""

import ast
from pathlib import Path

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec
from feature_repo.declarations.aggregate_views import definition_of
from feature_repo.declarations.built_in import built_in_aggregates, counts_of

ROOT = Path(__file__).parents[2]
SPEC = DatasetSpec.model_validate({
    "name": "shop",
    "events": {
        "path": "e.csv", "user": "u", "item": "i", "timestamp": "t", "type": "k", "value": "v",
        "types": {"view": {}, "buy": {"positive": True}},
    },
    "items": {"path": "i.csv", "key": "i", "attributes": {"kind": "categorical"},
              "category": "kind"},
})  # fmt: skip
DECLARED_IN = ("feature_repo/declarations/built_in.py", "feature_repo/columns.py")
FILES = [
    path
    for folder in ("feature_repo", "pipelines", "retrieval", "ranking", "serving", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.relative_to(ROOT).as_posix() not in DECLARED_IN
]


def names():
    return {
        one.name for view in built_in_aggregates(SPEC) for one in definition_of(view).aggregates
    }


def roles():
    """Return the features that code reads by a role, whose names stand in columns.py."""
    texts = {value for name, value in vars(c).items() if name.isupper() and isinstance(value, str)}
    return texts | {c.seen(kind) for kind in SPEC.event_types}


def spelt(path):
    """Return the texts of a file, pieces of f-strings included, without docstrings."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    said = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented)
            and node.body and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said
    }


def test_no_other_code_spells_a_built_in_feature():
    pieces = {"_count_", "_items_", "_users_", "events_", "value_mean_", "seen_"}
    listed = names() - {c.TREND}  # which is also the name of a function
    assert len(FILES) > 250 and len(listed) > 40
    assert {path: found for path in FILES if (found := spelt(path) & (listed | pieces))} == {}


def test_what_code_reads_by_a_role_is_declared():
    read = {c.HISTORY_ITEMS, c.HISTORY_TIMES, c.CATEGORIES, c.CATEGORY_SHARES, c.TREND}
    read |= {c.EVENTS_7D, c.EVENTS_30D, c.FIRST_EVENT_AT, c.LAST_EVENT_AT}
    assert read <= names() and read <= roles()
    assert all(c.seen(kind) in names() for kind in SPEC.event_types)


def test_the_columns_of_a_ranker_are_the_declared_counts():
    users, items = counts_of(SPEC)
    assert users[:5] == (
        "events_1d",
        "view_count_1d",
        "view_items_1d",
        "buy_count_1d",
        "buy_items_1d",
    )
    assert users[-1] == "active_days" and items[-1] == c.TREND
    assert not {c.FIRST_EVENT_AT, c.LAST_EVENT_AT} & {*users, *items}
