"""Who may import whom: feature_repo <- {retrieval, ranking} <- {pipelines, serving}."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from feature_repo.workspace import PROJECT_ROOT

MAY_IMPORT = {
    "feature_repo": set[str](),
    "retrieval": {"feature_repo"},
    "ranking": {"feature_repo"},
    "serving": {"feature_repo", "retrieval", "ranking"},
    "pipelines": {"feature_repo", "retrieval", "ranking", "serving"},
}
"""Each package and the others that it may import."""

LIGHT = {"views", "columns", "dataset"}
"""Modules of feature_repo that a notebook imports; Feast may load what it likes, they load no torch."""


def sources(package: str) -> list[Path]:
    return sorted((PROJECT_ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yield every module that a file names in an import, at any depth, with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                # A relative import stays in its package unless it climbs above it.
                depth = len(path.relative_to(PROJECT_ROOT).parts) - 1
                assert node.level <= depth, f"{path}:{node.lineno} climbs out of its package"
            elif node.module:
                yield node.lineno, node.module


def breaches(path: Path, forbidden: set[str]) -> list[str]:
    where = path.relative_to(PROJECT_ROOT)
    return [f"{where}:{line} imports {name}" for line, name in imported(path) if name.split(".")[0] in forbidden]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_what_lies_below_them(package: str) -> None:
    files = sources(package)
    assert files, f"no such package: {package}"
    above = set(MAY_IMPORT) - MAY_IMPORT[package] - {package} | {"benchmarks", "notebooks", "tests"}
    if package == "pipelines":
        above -= {"benchmarks"}  # `funnel benchmark` runs them
    assert [breach for path in files for breach in breaches(path, above)] == []


def test_feature_repo_is_light() -> None:
    heavy = {"torch", "faiss", "onnxruntime", "lightgbm", "sklearn"}
    assert {path.stem for path in sources("feature_repo")} >= LIGHT
    assert [breach for path in sources("feature_repo") for breach in breaches(path, heavy)] == []


def test_serving_and_rankers_at_work_have_no_torch() -> None:
    """Torch is for training: it may be named only where models are trained or exported."""
    at_work = [*sources("serving"), *sources("ranking/models"), PROJECT_ROOT / "ranking" / "scorer.py"]
    at_work += [PROJECT_ROOT / "retrieval" / name for name in ("context.py", "index.py", "neighbours.py")]
    assert [breach for path in at_work for breach in breaches(path, {"torch", "safetensors"})] == []


def test_breaches_are_found() -> None:
    """An import inside a function counts too."""
    release, fit = PROJECT_ROOT / "serving" / "release.py", PROJECT_ROOT / "ranking" / "fit.py"
    assert any("ranking.scorer" in breach for breach in breaches(release, {"ranking"}))
    assert any("ranking.dcn" in breach for breach in breaches(fit, {"ranking"}))
