"""A wrong dataset.toml is one clear sentence; a right one says what later stages ask."""

import copy
import re
import tomllib

import pytest

from feature_repo.dataset import DatasetSpec, SpecError, load_spec
from feature_repo.declarations.built_in import counts_of
from feature_repo.encoding import AttributeEncoder, Vocabulary
from ranking.rows import CROSS
from serving.recommender.codec import Codec

GOOD = """
name = "tiny"
[events]
path = "events.csv"
user = "user"
item = "item"
timestamp = "time"
type = "type"
value = "value"
rename_types = { VIEW = "view" }
[events.types]
view = { weight = 1 }
buy = { weight = 5, positive = true }
[users]
path = "users.csv"
key = "id"
attributes = { country = "categorical" }
rename = { country = "Land" }
optional = true
[items]
path = "items/*.csv"
key = "id"
attributes = { title = "text", tags = "multi_categorical", price = "numeric" }
title = "title"
category = "tags"
"""


def write(tmp_path, text):
    path = tmp_path / "dataset.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_whole_spec(tmp_path):
    spec = load_spec(write(tmp_path, GOOD))
    assert spec.event_types == ["view", "buy"]
    assert spec.positive_types == ["buy"]
    assert spec.has_value
    assert spec.category == "tags"
    assert spec.user_attributes == {"country": "categorical"}
    assert list(spec.item_attributes) == ["title", "tags", "price"]
    assert spec.users.source_column("country") == "Land"
    assert spec.items.source_column("title") == "title"
    assert DatasetSpec.model_validate_json(spec.model_dump_json()) == spec


def test_new_options_leave_the_hash_of_a_spec_without_them(tmp_path):
    spec = load_spec(write(tmp_path, GOOD))
    assert not {"quoting", "decimal", "recommend_unlisted"} & set(spec.model_dump()["items"])
    raw = tomllib.loads(GOOD)
    raw["items"] |= {"quoting": "none", "decimal": ",", "recommend_unlisted": True}
    changed = DatasetSpec.model_validate(raw)
    assert changed.model_dump()["items"]["decimal"] == ","
    assert DatasetSpec.model_validate_json(changed.model_dump_json()) == changed


def test_words_of_the_log_mean_event_types(tmp_path):
    spec = load_spec(write(tmp_path, GOOD))
    for word in ("view", "VIEW", " View "):
        assert spec.event_type(word) == "view"
    assert spec.event_type("steal") is None


@pytest.mark.parametrize("name", ["tower_score", "item_age_days", "category_share"])
def test_an_item_may_have_attributes_that_only_users_may_not(tmp_path, name):
    text = GOOD.replace('price = "numeric"', f'{name} = "numeric"')
    assert name in load_spec(write(tmp_path, text)).item_attributes


def test_columns_of_a_ranker_never_have_one_name(tmp_path):
    spec = load_spec(write(tmp_path, GOOD))
    empty = AttributeEncoder.fit({}, {})
    codec = Codec(
        spec, Vocabulary(()), Vocabulary(()), Vocabulary(()), empty, empty, *counts_of(spec)
    )
    for name in codec.numeric:
        if name.startswith("item_") or name in codec.user_numeric or name in CROSS:
            raw = tomllib.loads(GOOD)
            raw["users"] = {"path": "u", "key": "id", "attributes": {name: "numeric"}}
            with pytest.raises(ValueError, match="Funnel's own"):
                DatasetSpec.model_validate(raw)


def test_the_least_spec(tmp_path):
    text = 'name = "x"\n[events]\npath = "e"\nuser = "u"\nitem = "i"\ntimestamp = "t"\n'
    spec = load_spec(write(tmp_path, text))
    assert spec.event_types == spec.positive_types == ["interaction"]
    assert (spec.has_value, spec.category, spec.user_attributes, spec.item_attributes) == (
        False,
        None,
        {},
        {},
    )


def test_optional_tables_may_be_absent(tmp_path):
    spec = load_spec(write(tmp_path, GOOD))
    assert spec.without_optional(tmp_path).users is None
    assert spec.without_optional(tmp_path).items is not None
    (tmp_path / "users.csv").touch()
    assert spec.without_optional(tmp_path) == spec
    absolute = spec.model_copy(
        update={"users": spec.users.model_copy(update={"path": "/no/such/*.csv"})}
    )
    assert absolute.without_optional(tmp_path).users is None


def changed(path, value):
    """Return the good spec with one field changed (None: removed)."""
    raw = copy.deepcopy(tomllib.loads(GOOD))
    *parents, last = path.split(".")
    table = raw
    for parent in parents:
        table = table[parent]
    if value is None:
        del table[last]
    else:
        table[last] = value
    return raw


UNTYPED = {"view": {}, "buy": {"positive": True}}

WRONG = [
    ("name", "Not A Name", "name: "),
    ("name", None, "name: Field required"),
    ("events", None, "events: Field required"),
    ("events.user", None, "events.user: Field required"),
    ("events.user", 3, "events.user: Input should be a valid string"),
    ("events.users", "u", "events.users: Extra inputs are not permitted"),
    ("events.path", "", "events.path: "),
    ("events.format", "xml", "events.format: Input should be 'csv', 'parquet' or 'jsonl'"),
    ("events.separator", "", "separator = '' cannot separate columns"),
    ("events.separator", '"', "cannot separate columns"),
    ("events.separator", "\n", "cannot separate columns"),
    ("events.encoding", "utf-9", "encoding = 'utf-9' is not a text encoding"),
    ("events.encoding", "zlib", "encoding = 'zlib' is not a text encoding"),
    ("events.columns", [], "events.columns: "),
    ("events.columns", ["a", "a"], "columns names one column twice"),
    ("events.timestamp_unit", "days", "events.timestamp_unit: "),
    ("events.types", {}, "at least one type needs positive = true"),
    ("events.types", {"view": {}}, "at least one type needs positive = true"),
    ("events.types.view.weight", -1, "events.types.view.weight: "),
    ("events.types.buy.weight", 0, "a positive event type needs a weight above 0"),
    ("events.types.view.weight", float("inf"), "events.types.view.weight: "),
    ("events.types.view.weight", float("nan"), "events.types.view.weight: "),
    ("events.types", {"View": {"positive": True}}, "[events.types]: 'View' is not an event type"),
    ("events.types.view.min_value", 1, "min_value needs a 'value' column and no 'type' column"),
    ("events.rename_types", {"X": "none"}, "['none'] not among [events.types]"),
    ("users.key", None, "users.key: Field required"),
    ("users.attributes", {"country": "colour"}, "users.attributes.country: "),
    (
        "users.attributes",
        {"Country": "text"},
        "[users.attributes]: 'Country' is not a feature name",
    ),
    ("users.rename", {"land": "Land"}, "rename: ['land'] not among the attributes"),
    ("users.title", "country", "users.title: Extra inputs"),
    ("items.attributes.item_id", "text", "attribute ['item_id']: the name is Funnel's own"),
    (
        "items.attributes.view_count_7d",
        "numeric",
        "attribute ['view_count_7d']: the name is Funnel's own",
    ),
    (
        "items.attributes.available_from",
        "numeric",
        "attribute ['available_from']: the name is Funnel's own",
    ),
    (
        "users.attributes",
        {"country": "text", "tower_score": "numeric", "item_age_days": "numeric"},
        "attribute ['item_age_days', 'tower_score']: the name is Funnel's own",
    ),
    (
        "users.attributes",
        {"country": "text", "item_price": "numeric"},
        "attribute ['item_price', 'price']: the name is Funnel's own; choose another, with rename",
    ),
    ("events.types.view.weight", 1e7, "events.types.view.weight: "),
    ("items.quoting", "single", "items.quoting: "),
    ("items.decimal", ";", "items.decimal: "),
    ("users.recommend_unlisted", True, "users.recommend_unlisted: Extra inputs"),
    ("items.list_separator", "", "items.list_separator: "),
    ("items.title", "name", "title = 'name' is not among [items.attributes]"),
    ("items.category", "name", "category = 'name' is not among [items.attributes]"),
    ("items.category", "price", "category = 'price' must be categorical or multi_categorical"),
]


def toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}" = {toml(inner)}' for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return '"' + value.replace('"', '\\"').replace("\n", "\\n") + '"'
    return str(value).lower()


def refused(tmp_path, raw):
    path = write(tmp_path, "\n".join(f"{key} = {toml(value)}" for key, value in raw.items()))
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_the_helper_writes_what_it_should(tmp_path):
    raw = tomllib.loads(GOOD)
    text = "\n".join(f"{key} = {toml(value)}" for key, value in raw.items())
    assert load_spec(write(tmp_path, text)) == DatasetSpec.model_validate(raw)


@pytest.mark.parametrize(("path", "value", "message"), WRONG)
def test_one_mistake_is_one_sentence(tmp_path, path, value, message):
    assert message in refused(tmp_path, changed(path, value))


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ({"types": UNTYPED}, "several types need a 'type' column"),
        ({"types": UNTYPED, "value": "v"}, "without a 'type' column every type needs min_value"),
        ({"types": {"a": {"min_value": 1, "positive": True}}}, "min_value needs a 'value' column"),
        (
            {
                "types": {"a": {"min_value": 1, "positive": True}, "b": {"min_value": 1}},
                "value": "v",
            },
            "two types have the same min_value",
        ),
        (
            {"types": {"a": {"positive": True}}, "rename_types": {"A": "a"}},
            "there is no 'type' column",
        ),
    ],
)
def test_types_without_a_type_column(tmp_path, events, message):
    raw = {
        "name": "x",
        "events": {"path": "e", "user": "u", "item": "i", "timestamp": "t", **events},
    }
    assert message in refused(tmp_path, raw)


def test_several_mistakes_are_all_named(tmp_path):
    raw = changed("name", "No")
    del raw["events"]["item"]
    message = refused(tmp_path, raw)
    assert "name: " in message
    assert "; events.item: Field required" in message


@pytest.mark.parametrize("column", ["user_id:token", "Größe", "9.price", "Unit Price", "A", "ünit"])
def test_a_column_with_another_form_of_name_is_accepted_as_the_message_proposes(tmp_path, column):
    """Whoever pastes the proposed line into [items.rename] has a spec that loads."""
    message = refused(tmp_path, changed("items.attributes", {column: "numeric"}))
    proposed = re.search(r"\[items.rename\], for example (\w+) = (\".*\")", message)
    assert proposed, message
    name = proposed[1]
    pasted = tomllib.loads(f"{name} = {proposed[2]}")
    items = {"path": "i.csv", "key": "id", "attributes": {name: "numeric"}, "rename": pasted}
    raw = changed("items", items)
    text = "\n".join(f"{key} = {toml(value)}" for key, value in raw.items())
    assert load_spec(write(tmp_path, text)).items.source_column(name) == column


def test_files_that_are_no_spec(tmp_path):
    for path, message in ((tmp_path / "none.toml", "no such file"), (tmp_path, "cannot be read")):
        with pytest.raises(SpecError, match=message):
            load_spec(path)
    for content in (b"name = ", b"\xff\xfe", b"a = 1\na = 2"):
        (tmp_path / "x.toml").write_bytes(content)
        with pytest.raises(SpecError, match="not valid TOML"):
            load_spec(tmp_path / "x.toml")
