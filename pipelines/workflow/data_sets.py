"""The data sets whose layout Funnel knows, and the working folder of each."""

from __future__ import annotations

from pathlib import Path

from feature_repo.dataset import DatasetSpec, SpecError, load_spec
from feature_repo.files import link_atomically
from feature_repo.settings import read_settings
from feature_repo.workspace import Workspace, work_folder
from pipelines.synthetic.world import BUILT_IN

SPECS = Path(__file__).resolve().parent.parent / "specs"
"""Folder of the specs that come with Funnel."""


def known_specs() -> list[str]:
    """Return the names of the data sets whose layout Funnel knows."""
    return sorted({*BUILT_IN, *(path.stem for path in SPECS.glob("*.toml"))})


def find_spec(data: str) -> DatasetSpec:
    """Return the spec of a known data set, or the one in a ``dataset.toml``.

    Raises:
        SpecError: neither is there, or the file breaks the schema.

    """
    if data in BUILT_IN:
        return load_spec(SPECS / "synthetic.toml").model_copy(update={"name": data})
    if data in known_specs():
        return load_spec(SPECS / f"{data}.toml")
    if data.endswith(".toml"):
        return load_spec(Path(data))
    raise SpecError(
        f"unknown data set '{data}': choose from {', '.join(known_specs())}, "
        "or give the path of a dataset.toml"
    )


def workspace_for(spec: DatasetSpec, home: Path | None) -> Workspace:
    """Return the working folder of a data set.

    That is ``home``, else ``FUNNEL_HOME``, else ``work/<name>``, which becomes ``work/current``.
    """
    home = home or read_settings().home
    if home is not None:
        return Workspace(home.resolve())
    work = work_folder()
    root = work / spec.name
    root.mkdir(parents=True, exist_ok=True)
    link_atomically(work / "current", root)
    return Workspace(root)
