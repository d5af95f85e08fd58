"""The command line starts without Feast's type checks; a notebook keeps its typeguard."""

import subprocess
import sys

import pytest

SCRIPT = """
import typeguard
before = typeguard.typechecked
import {module}
print(typeguard.typechecked is before)
"""


@pytest.mark.parametrize(
    ("module", "unchanged"),
    [
        ("feature_repo.workspace", True),
        ("feature_repo.stores.redis_settings", True),
        ("serving.recommender.recommender", True),
        ("pipelines.commands.cli", False),
    ],
)
def test_only_the_command_line_switches_typeguard_off(module, unchanged):
    script = SCRIPT.format(module=module)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(unchanged)]


def test_both_forms_of_the_decorator_change_nothing(monkeypatch):
    import typeguard

    from feature_repo.stores.feast_checks import disable_feast_type_checks

    monkeypatch.setattr(typeguard, "typechecked", typeguard.typechecked)
    disable_feast_type_checks()

    def doubled(number: int) -> int:
        return 2 * number

    assert typeguard.typechecked(doubled) is doubled
    assert typeguard.typechecked(collection_check_strategy=None)(doubled) is doubled
