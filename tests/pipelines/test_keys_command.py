"""``funnel keys`` as a person meets it."""

import re

import pytest
from typer.testing import CliRunner

from pipelines.commands.keys import keys
from serving.http.keys import KeyRing, Scope, read_keys


@pytest.fixture
def funnel_keys(tmp_path):
    def run(*arguments, code=0):
        done = CliRunner().invoke(
            keys, [*arguments, "--home", str(tmp_path)], env={"COLUMNS": "200"}
        )
        assert done.exit_code == code, done.output
        return done

    return run


def test_a_key_is_the_only_thing_on_standard_output(funnel_keys, tmp_path):
    said = funnel_keys(
        "create", "--name", "web", "--scope", "recommend", "--scope", "events", "--rate", "50"
    )
    assert re.fullmatch(r"fk_[0-9a-f]{8}_[A-Za-z0-9_-]{43}\n", said.stdout)
    found = KeyRing(tmp_path / "keys.json").find(said.stdout.strip())
    assert found and set(found.scopes) == {Scope.RECOMMEND, Scope.EVENTS} and found.rate_limit == 50
    assert found.id in said.stderr and "Store it now" in said.stderr


def test_the_list_shows_everything_but_secrets(funnel_keys):
    assert "scopes" in funnel_keys("list").stdout
    text = funnel_keys(
        "create", "--name", "shop [bold]", "--scope", "admin", "--days", "30"
    ).stdout.strip()
    _, key_id, secret = text.split("_", 2)
    shown = funnel_keys("list").stdout
    assert key_id in shown and "shop [bold]" in shown and "admin" in shown
    assert secret not in shown


def test_rotate_and_revoke(funnel_keys, tmp_path):
    path = tmp_path / "keys.json"
    old = funnel_keys("create", "--name", "web", "--scope", "events").stdout.strip()
    new = funnel_keys("rotate", old.split("_")[1], "--grace-hours", "0").stdout.strip()
    assert KeyRing(path).find(old) is None and KeyRing(path).find(new)
    assert "(expired)" in funnel_keys("list").stdout
    for text in (old, new):
        funnel_keys("revoke", text.split("_")[1])
    assert read_keys(path) == []
    assert "no key with this id" in str(funnel_keys("revoke", "12345678", code=1).exception)


@pytest.mark.parametrize(
    "wrong",
    [
        ["--name", "web"],
        ["--scope", "events"],
        ["--name", "", "--scope", "events"],
        ["--name", "web", "--scope", "everything"],
        ["--name", "web", "--scope", "events", "--days", "-1"],
        ["--name", "web", "--scope", "events", "--rate", "0"],
    ],
)
def test_mistakes_make_no_key(funnel_keys, tmp_path, wrong):
    funnel_keys("create", *wrong, code=2)
    assert not (tmp_path / "keys.json").exists()
