"""Settings: read from the environment, refused in one sentence, and listed in the documents."""

import re

import pytest
from typer.testing import CliRunner

from feature_repo.settings import PREFIX, SECRETS, Settings, SettingsError, read_settings
from feature_repo.workspace import PROJECT_ROOT
from pipelines.commands.cli import app

OPERATIONS = PROJECT_ROOT / "docs" / "operations.md"


def test_an_empty_variable_counts_as_not_set(monkeypatch):
    monkeypatch.setenv("FUNNEL_HOME", "")
    monkeypatch.setenv("FUNNEL_EVENT_LOG", "")
    assert read_settings().home is None
    assert read_settings().event_log == "redis"


def test_settings_follow_the_environment(monkeypatch):
    monkeypatch.setenv("FUNNEL_DEADLINE_MS", "70")
    before = read_settings()
    assert read_settings() is before and before.deadline_ms == 70
    monkeypatch.setenv("FUNNEL_DEADLINE_MS", "80")
    assert read_settings().deadline_ms == 80


def test_values_are_parsed(monkeypatch):
    monkeypatch.setenv("FUNNEL_CORS_ORIGINS", "https://shop.example, http://localhost:3000,")
    monkeypatch.setenv("FUNNEL_LOG", "JSON")
    monkeypatch.setenv("FUNNEL_LOG_LEVEL", "debug")
    monkeypatch.setenv("FUNNEL_OTEL", "off")
    settings = read_settings()
    assert settings.cors_origins == ("https://shop.example", "http://localhost:3000")
    assert (settings.log, settings.log_level, settings.otel) == ("json", "DEBUG", False)


WRONG = {
    "FUNNEL_PROFILE": "laptop",
    "FUNNEL_EVENT_LOG": "s3://bucket",
    "FUNNEL_LOG_MAX_EVENTS": "0",
    "FUNNEL_SPARK_DRIVER_MEMORY": "3 gigabytes",
    "FUNNEL_THREADS": "many",
    "FUNNEL_DEADLINE_MS": "-1",
    "FUNNEL_OPEN": "1",
    "FUNNEL_CORS_ORIGINS": "*",
    "FUNNEL_LOG": "xml",
    "FUNNEL_OTEL": "perhaps",
}


@pytest.mark.parametrize(("variable", "value"), WRONG.items())
def test_a_wrong_value_is_named_with_what_is_allowed(variable, value, monkeypatch):
    monkeypatch.setenv(variable, value)
    allowed = Settings.model_fields[variable.removeprefix(PREFIX).lower()].description
    assert allowed
    with pytest.raises(SettingsError, match=re.escape(f"{variable}={value}: ")) as refused:
        read_settings()
    assert allowed in str(refused.value)


def test_all_wrong_values_are_named_at_once(monkeypatch):
    monkeypatch.setenv("FUNNEL_THREADS", "0")
    monkeypatch.setenv("FUNNEL_UNDER_WAY", "0")
    with pytest.raises(SettingsError, match="FUNNEL_THREADS=0: .*; FUNNEL_UNDER_WAY=0: "):
        read_settings()


def test_secrets_do_not_show(monkeypatch):
    monkeypatch.setenv("FUNNEL_KEY", "fk_hidden")
    monkeypatch.setenv("FUNNEL_REDIS", "host,password=hidden")
    monkeypatch.setenv("FUNNEL_REGISTRY", "postgresql+psycopg://me:hidden@host/feast")
    assert {"key", "redis", "registry"} == SECRETS
    assert "hidden" not in repr(read_settings())


@pytest.mark.parametrize("command", ["serve", "ingest", "stream", "keys"])
def test_every_command_checks_settings_before_it_starts(command, monkeypatch, tmp_path):
    monkeypatch.setenv("FUNNEL_DEADLINE_MS", "soon")
    arguments = [command, *(["list"] if command == "keys" else []), "--home", str(tmp_path)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert re.fullmatch(r"funnel: FUNNEL_DEADLINE_MS=soon: .*\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_the_documents_list_every_setting():
    rows = dict(
        re.findall(r"^\| `(FUNNEL_\w+)` \| (.*) \|$", OPERATIONS.read_text(encoding="utf-8"), re.M)
    )
    for name, field in Settings.model_fields.items():
        description, _, default = rows.pop(f"{PREFIX}{name.upper()}").rpartition(" | ")
        assert description == field.description
        if field.default is not None and field.default != ():
            shown = field.default if isinstance(field.default, str) else f"{field.default:,}"
            assert default == f"`{str(shown).removesuffix('.0')}`"
    assert not rows, "documented, but not read"


def test_nothing_else_reads_the_environment():
    readers = set()
    for package in ("feature_repo", "pipelines", "retrieval", "ranking", "serving", "benchmarks"):
        for path in (PROJECT_ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if re.search(r"environ(\.get\(|\[)\s*\"FUNNEL_", text):
                readers.add(str(path.relative_to(PROJECT_ROOT)))
    assert readers == set()
