"""The notebooks run on a finished workspace, make their figures, and are stored without output."""

import os
import re
import shutil
import subprocess
import sys
import zipfile

import nbformat
import pytest
from jupyter_client.provisioning import local_provisioner

from feature_repo.workspace import PROJECT_ROOT, Workspace
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.notebooks import (
    FOLDER,
    NotReady,
    begin,
    execute,
    notebook_paths,
    run_notebooks,
)
from pipelines.training.release import make_release
from pipelines.training.release_pointer import current_release
from tests.support.forked import Forked
from tests.support.small_world import silent
from tests.support.tiny_world import tiny_world
from tests.support.waiting import wait_until

FIGURES = {"1_data_and_features": 6, "2_retrieval": 5, "3_ranking": 3, "4_end_to_end": 5}
"""Figures of each notebook on a workspace that has everything."""

FEWER_REQUESTS = {
    "2_retrieval": ("REQUESTS = 1_000", "REQUESTS = 200"),
    "3_ranking": (
        "REQUESTS, IMPORTANCE_REQUESTS, REPEATS = 300, 100, 2",
        "REQUESTS, IMPORTANCE_REQUESTS, REPEATS = 80, 30, 2",
    ),
}
"""Constants of the notebooks, and those of the test, which has less time."""


class ForkedKernel(Forked):
    """A kernel that finds the product imported already; it leads a process group of its own."""

    stdin = stdout = stderr = None

    def __init__(self, command, *, env, cwd, **_options):
        super().__init__(run_kernel, command, cwd, environment=env)
        wait_until(lambda: os.getpgid(self.pid) == self.pid, what="for the kernel's fork")


def run_kernel(command, folder):
    """Be the kernel that ``python -m ipykernel_launcher ...`` starts."""
    from ipykernel.kernelapp import launch_new_instance

    os.setsid()
    os.chdir(folder)
    launch_new_instance(argv=command[command.index("ipykernel_launcher") + 1 :])


@pytest.fixture(autouse=True)
def forked_kernels(monkeypatch):
    monkeypatch.setattr(local_provisioner, "launch_kernel", ForkedKernel)


@pytest.fixture(scope="module")
def compared(copy, tmp_path_factory):
    """A copy of the tiny world with a second release, compared with the first, and ablations."""
    folder = tmp_path_factory.mktemp("notebooks")
    with copy(tiny_world(), folder / "w") as workspace:
        first = current_release(workspace)
        rules = folder / "rules.toml"
        rules.write_text('exclude_seen = ["view"]\n', encoding="utf-8")
        release = make_release(workspace, rules)
        evaluate(workspace, release, silent, 400, baselines=False, ablations=True, against=first)
        yield workspace


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said(notebook):
    return [output for cell in code(notebook) for output in cell.outputs]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.faults] if name[0] in "23" else []) for name in FIGURES],
)
def test_every_cell_runs_and_the_figures_are_there(name, compared, tmp_path):
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    constants, fewer = FEWER_REQUESTS.get(name, ("", ""))
    assert constants in text
    notebook = tmp_path / f"{name}.ipynb"
    notebook.write_text(text.replace(constants, fewer) if constants else text, encoding="utf-8")
    found = execute(notebook, compared)
    assert [cell.execution_count for cell in code(found)] == list(range(1, len(code(found)) + 1))
    assert sum("image/png" in output.get("data", {}) for output in said(found)) == FIGURES[name]
    assert [output.text for output in said(found) if output.output_type == "stream"] == []


@pytest.mark.parametrize("name", FIGURES)
def test_a_stored_notebook_holds_nothing_of_a_run(name):
    path = FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert said(notebook) == []
    assert {cell.execution_count for cell in code(notebook)} == {None}
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert not re.search(
        r"(/home|/Users|/root|/tmp|/work|[A-Z]:\\\\)[/\\]", path.read_text(encoding="utf-8")
    )


def test_all_notebooks_are_tested():
    assert {path.stem for path in notebook_paths()} == set(FIGURES)


def test_a_wheel_has_the_notebooks_where_an_installation_looks_for_them(tmp_path):
    """They are installed beside the packages, as in a checkout; a wheel is built from a copy."""
    sources = tmp_path / "sources"
    for name in ("pyproject.toml", "README.md", "feature_repo", "notebooks"):
        path = PROJECT_ROOT / name
        copy = shutil.copytree if path.is_dir() else shutil.copy
        sources.mkdir(exist_ok=True)
        copy(path, sources / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(sources)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "feature_repo/workspace.py" in names and FOLDER.parent == PROJECT_ROOT
    assert {f"notebooks/{name}.ipynb" for name in FIGURES} <= names


def test_an_installation_without_notebooks_says_what_to_do(built, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.evaluation.notebooks.FOLDER", tmp_path / "none")
    with pytest.raises(NotReady, match="No notebooks in .*install Funnel again"):
        run_notebooks(built.workspace, tmp_path / "out")


def test_without_a_workspace_one_line_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setenv("FUNNEL_HOME", str(tmp_path))
    with pytest.raises(NotReady, match="make demo SERVE=no") as refused:
        begin()
    assert refused.value._render_traceback_() == [str(refused.value)]
    with pytest.raises(NotReady, match="make demo SERVE=no"):
        run_notebooks(Workspace(tmp_path), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_said_with_the_command_that_makes_it(tiny, tmp_path, monkeypatch):
    evaluate(tiny, current_release(tiny), silent, 400, baselines=False)
    shutil.copy(FOLDER / "4_end_to_end.ipynb", tmp_path)
    monkeypatch.setattr("pipelines.evaluation.notebooks.FOLDER", tmp_path)
    (page,) = run_notebooks(tiny, tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    assert "funnel evaluate --ablations" in text and "There is one release only" in text
    assert text.count("<img") == 3
