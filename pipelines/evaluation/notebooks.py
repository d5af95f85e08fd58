"""``funnel notebooks``: every notebook run on a finished workspace and written as a page; and how each begins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from feature_repo.workspace import (
    PROJECT_ROOT,
    MissingStage,
    Workspace,
    default_root,
    read_json,
    write_atomically,
)
from pipelines import display
from pipelines.evaluation.plots import use_style
from pipelines.training.release import current_release
from serving.releases.release import EVALUATION

FOLDER = PROJECT_ROOT / "notebooks"
_CELL_TIMEOUT_S = 1_800


class NotReady(MissingStage):
    """A notebook cannot begin: there is no finished workspace."""

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows in place of a traceback."""
        return [str(self)]


def begin() -> Workspace:
    """Set the style of figures and return the workspace in use: FUNNEL_HOME, else ``work/current``.

    Raises:
        NotReady: it is not there, or has no release yet; the message says what to run.

    """
    use_style()
    return _finished(Workspace(default_root().resolve()))


def _finished(workspace: Workspace) -> Workspace:
    try:
        current_release(workspace)
    except MissingStage:
        raise NotReady(
            f"No finished workspace in {workspace.root}: run 'make demo SERVE=no' first, or set FUNNEL_HOME to one."
        ) from None
    return workspace


def evaluation(workspace: Workspace) -> dict[str, Any]:
    """Return the evaluation of the current release.

    Raises:
        NotReady: there is none; the message says what to run.

    """
    path = current_release(workspace) / EVALUATION
    if not path.is_file():
        raise NotReady(
            f"Release {path.parent.name} has no evaluation yet: run 'funnel evaluate' first."
        )
    found: dict[str, Any] = read_json(path)
    return found


def execute(notebook: Path, workspace: Workspace) -> Any:
    """Return a notebook with what it says and draws of a workspace, run from the first cell to the last.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.

    """
    import nbformat
    from nbclient import NotebookClient

    content = nbformat.read(notebook, as_version=4)
    where = {"metadata": {"path": str(notebook.parent)}}
    # Above warnings: the kernel has one about its transport, which is this machine's loopback.
    quiet = ["--IPKernelApp.log_level=ERROR"]
    client = NotebookClient(
        content,
        timeout=_CELL_TIMEOUT_S,
        kernel_name="python3",
        resources=where,
        extra_arguments=quiet,
    )
    return client.execute(env={**os.environ, "FUNNEL_HOME": str(workspace.root.resolve())})


def run_notebooks(workspace: Workspace, out: Path) -> list[Path]:
    """Execute all notebooks on a workspace and write each as an HTML page with its figures.

    Args:
        workspace: the working folder.
        out: folder of the pages.

    Returns:
        the pages.

    Raises:
        NotReady: the workspace is not finished.

    """
    from nbconvert import HTMLExporter

    _finished(workspace)
    pages = []
    for notebook in sorted(FOLDER.glob("*.ipynb")):
        with display.stage(notebook.stem):
            body, _ = HTMLExporter().from_notebook_node(execute(notebook, workspace))
        pages.append(out / f"{notebook.stem}.html")
        write_atomically(pages[-1], body)
    return pages
