"""``funnel notebooks``: runs the notebooks on a finished workspace and writes them as pages.

Also what each notebook begins with.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from feature_repo.files import write_atomically
from feature_repo.workspace import PROJECT_ROOT, MissingStage, Workspace, default_root
from pipelines import display
from pipelines.evaluation.figures import Evaluation
from pipelines.evaluation.plots import use_style
from pipelines.training.release_pointer import current_release

FOLDER = PROJECT_ROOT / "notebooks"
"""In a checkout, and in an installed wheel, beside the packages."""

_CELL_TIMEOUT_S = 1_800


class NotReady(MissingStage):
    """The notebooks cannot run: there is no finished workspace, or a part is not installed."""

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows in place of a traceback."""
        return [str(self)]


def begin() -> Workspace:
    """Set the style of figures and return the workspace in use: FUNNEL_HOME, else ``work/current``.

    Raises:
        NotReady: it does not exist, or has no release yet; the message says what to run.

    """
    use_style()
    return _finished(Workspace(default_root().resolve()))


def _finished(workspace: Workspace) -> Workspace:
    try:
        current_release(workspace)
    except MissingStage:
        raise NotReady(
            f"No finished workspace in {workspace.root}: "
            "run 'make demo SERVE=no' first, or set FUNNEL_HOME to one."
        ) from None
    return workspace


def evaluation(workspace: Workspace) -> Evaluation:
    """Return the evaluation of the current release.

    Raises:
        NotReady: there is none; the message says what to run.

    """
    folder = current_release(workspace)
    figures = Evaluation.load(folder)
    if figures is None:
        raise NotReady(f"Release {folder.name} has no evaluation yet: run 'funnel evaluate' first.")
    return figures


def notebook_paths() -> list[Path]:
    """Return the notebooks, in the order in which they are read.

    Raises:
        NotReady: this installation of Funnel has none; the message says what to do.

    """
    paths = sorted(FOLDER.glob("*.ipynb"))
    if not paths:
        raise NotReady(
            f"No notebooks in {FOLDER}: install Funnel again, from a wheel built by "
            "'pip wheel --no-deps .' in a checkout, or with 'pip install -e .' there."
        )
    return paths


def execute(notebook: Path, workspace: Workspace) -> Any:
    """Return a notebook with its outputs on a workspace, run from the first cell to the last.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.

    """
    import nbformat
    from nbclient import NotebookClient

    content = nbformat.read(notebook, as_version=4)
    client = NotebookClient(
        content,
        timeout=_CELL_TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(notebook.parent)}},
        # Above warnings: the kernel warns of its transport, which is this machine's loopback.
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
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
        NotReady: the workspace is not finished, or the notebooks' packages are not installed.

    """
    try:
        import nbclient  # noqa: F401
        from nbconvert import HTMLExporter
    except ModuleNotFoundError as error:
        raise NotReady(
            f"The package {error.name} is not installed: "
            "run pip install 'funnel-recommender[notebooks]'."
        ) from None

    _finished(workspace)
    pages = []
    for notebook in notebook_paths():
        with display.stage(notebook.stem):
            body, _ = HTMLExporter().from_notebook_node(execute(notebook, workspace))
        pages.append(out / f"{notebook.stem}.html")
        write_atomically(pages[-1], body)
    return pages
