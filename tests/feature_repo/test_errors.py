"""Every error of ours that ends a command has a base with an exit code."""

import ast

import pytest

from feature_repo.dataset import SpecError
from feature_repo.errors import FunnelError
from feature_repo.sanity import CannotLearn
from feature_repo.workspace import PROJECT_ROOT, MissingStage

PACKAGES = ("feature_repo", "pipelines", "retrieval", "ranking", "serving", "benchmarks")


@pytest.mark.parametrize(
    ("error", "exit_code"), [(SpecError, 2), (MissingStage, 2), (CannotLearn, 1)]
)
def test_the_exit_code_says_whose_mistake_it_is(error, exit_code):
    assert issubclass(error, FunnelError)
    assert error("what, where, and what to do").exit_code == exit_code


def test_no_error_of_ours_is_a_bare_runtime_error():
    bare = [
        f"{path.relative_to(PROJECT_ROOT)}:{node.lineno} {node.name}"
        for package in PACKAGES
        for path in (PROJECT_ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and any(isinstance(base, ast.Name) and base.id == "RuntimeError" for base in node.bases)
    ]
    assert bare == []
