"""Who may import whom: the layers, the packages inside them, and the pure recommender."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from feature_repo.workspace import PROJECT_ROOT

LAYERS = {
    "feature_repo": set[str](),
    "retrieval": {"feature_repo"},
    "ranking": {"feature_repo"},
    "serving": {"feature_repo", "retrieval", "ranking"},
    "pipelines": {"feature_repo", "retrieval", "ranking", "serving"},
}
"""Each top-level package and the others that it may import."""

LIGHT = {"views", "columns", "dataset"}
"""Modules of feature_repo that a notebook imports.

Feast may load what it likes, they load no torch.
"""

IMPURE = {"serving.http", "serving.online", "serving.event_log", "serving.process"}
"""What the recommender must not know: clients, stores, logs and processes."""

HEAVY = {"torch", "faiss", "onnxruntime", "lightgbm", "sklearn"}


def sources(package: str) -> list[Path]:
    return sorted((PROJECT_ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yield every module that a file names in an import, at any depth, with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} has a relative import; name the package"
            yield from ((node.lineno, module) for module in _modules(node))


def _modules(node: ast.ImportFrom) -> Iterator[str]:
    """Yield the modules of a from-import: the names themselves where they are modules of ours."""
    folder = PROJECT_ROOT / str(node.module).replace(".", "/")
    for name in node.names:
        is_module = (folder / f"{name.name}.py").is_file() or (
            folder / name.name / "__init__.py"
        ).is_file()
        yield f"{node.module}.{name.name}" if is_module else str(node.module)


def is_below(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def breaches(path: Path, forbidden: set[str]) -> list[str]:
    where = path.relative_to(PROJECT_ROOT)
    return [
        f"{where}:{line} imports {name}"
        for line, name in imported(path)
        if is_below(name, forbidden)
    ]


def package_of(path: Path) -> str:
    """Return the package that holds a module; a package's ``__init__`` belongs to the package."""
    return ".".join(path.relative_to(PROJECT_ROOT).parent.parts)


def package_graph() -> dict[str, dict[str, str]]:
    """Return the imports between packages: importer -> imported -> one line that does it."""
    graph: dict[str, dict[str, str]] = defaultdict(dict)
    for path in (path for top in [*LAYERS, "benchmarks"] for path in sources(top)):
        for line, name in imported(path):
            module = PROJECT_ROOT / name.replace(".", "/")
            if not (module.is_dir() or module.with_suffix(".py").is_file()):
                continue  # a library
            package = name if module.is_dir() else name.rpartition(".")[0]
            if package != package_of(path):
                graph[package_of(path)].setdefault(
                    package, f"{path.relative_to(PROJECT_ROOT)}:{line} imports {name}"
                )
    return graph


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_import_only_what_lies_below_them(layer: str) -> None:
    files = sources(layer)
    assert files, f"no such package: {layer}"
    above = set(LAYERS) - LAYERS[layer] - {layer} | {"notebooks", "tests"}
    assert [breach for path in files for breach in breaches(path, above)] == []


def test_packages_have_no_circle() -> None:
    graph = package_graph()
    assert len(graph) > 20, "the walk found too few packages"
    try:
        TopologicalSorter({package: set(others) for package, others in graph.items()}).prepare()
    except CycleError as error:
        circle = error.args[1]
        steps = [graph[b][a] for a, b in zip(circle, circle[1:], strict=False) if a in graph[b]]
        pytest.fail("packages import each other in a circle:\n" + "\n".join(steps))


def test_the_recommender_is_pure() -> None:
    """It reaches no client, store, log or process.

    Not directly, nor through another module of ours.
    """
    reached, waiting = set[str](), {"serving.recommender"}
    graph = package_graph()
    while waiting:
        package = waiting.pop()
        reached.add(package)
        waiting |= set(graph[package]) - reached
    assert "ranking.models" in reached, "the walk stops too early"
    assert reached & IMPURE == set()


def test_only_the_command_line_imports_benchmarks() -> None:
    files = [path for layer in LAYERS for path in sources(layer)]
    found = {breach.split(":")[0] for path in files for breach in breaches(path, {"benchmarks"})}
    assert found == {"pipelines/commands/benchmark.py"}


def test_every_package_says_what_it_is() -> None:
    packages = [path for layer in LAYERS for path in sources(layer) if path.name == "__init__.py"]
    undocumented = [
        str(path.parent) for path in packages if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert packages and undocumented == []


def test_feature_repo_is_light() -> None:
    assert {path.stem for path in sources("feature_repo")} >= LIGHT
    assert [breach for path in sources("feature_repo") for breach in breaches(path, HEAVY)] == []


def test_serving_and_rankers_at_work_have_no_torch() -> None:
    """Torch is for training: it may be named only where models are trained or exported."""
    at_work = [
        *sources("serving"),
        *sources("ranking/models"),
        PROJECT_ROOT / "retrieval/towers/context.py",
    ]
    at_work += [PROJECT_ROOT / "retrieval" / name for name in ("index.py", "covisitation.py")]
    assert [breach for path in at_work for breach in breaches(path, {"torch", "safetensors"})] == []


def test_breaches_are_found() -> None:
    """An import inside a function counts too."""
    release, fit = (
        PROJECT_ROOT / "serving/releases/release.py",
        PROJECT_ROOT / "ranking/training/fit.py",
    )
    assert any("ranking.models.scorer" in breach for breach in breaches(release, {"ranking"}))
    assert any(
        "ranking.training.fit_dcn" in breach for breach in breaches(fit, {"ranking.training"})
    )
