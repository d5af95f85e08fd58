"""The working folder of one data set: where every stage finds what the one before it left.

Everything Funnel writes lies below one folder (``work/<data>`` by default); ``work/current`` is a
link to the one in use, which is where ``feast`` run from ``feature_repo/`` looks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from feature_repo.dataset import DatasetSpec
from feature_repo.errors import FunnelError
from feature_repo.settings import read_settings

PROJECT_ROOT = Path(__file__).resolve().parent.parent


class MissingStage(FunnelError):
    """A stage needs the output of an earlier one; the message names the command to run."""

    exit_code = 2


@dataclass(frozen=True)
class Workspace:
    """Paths below one working folder."""

    root: Path

    @property
    def ingest(self) -> Path:
        """Typed tables, quarantine and the manifest of ingested batches."""
        return self.root / "ingest"

    @property
    def features(self) -> Path:
        """Offline feature tables of the latest finished run (a link, swapped atomically)."""
        return self.root / "features" / "current"

    @property
    def feast_registry(self) -> Path:
        """Feast's registry file."""
        return self.root / "feast" / "registry.db"

    @property
    def redis(self) -> Path:
        """Data, socket and log of the embedded Redis."""
        return self.root / "redis"

    @property
    def models(self) -> Path:
        """Checkpoints and trained models that are not released yet."""
        return self.root / "models"

    @property
    def tuning(self) -> Path:
        """Studies of hyper-parameters, and the best settings that they found."""
        return self.root / "tuning"

    @property
    def releases(self) -> Path:
        """Releases, one folder each; ``current`` is a link to the one that is served."""
        return self.root / "releases"

    @property
    def impressions(self) -> Path:
        """What was served: Parquet files, written by the server."""
        return self.root / "impressions"

    @property
    def peers(self) -> Path:
        """What ``funnel evaluate`` keeps of models that run in an environment of their own."""
        return self.root / "peers"

    @property
    def tracking(self) -> Path:
        """MLflow's local store."""
        return self.root / "mlflow"

    @property
    def declarations(self) -> Path | None:
        """The data set's ``features.py``; None: it has none."""
        file = self.spec().features
        return Path(file) if file else None

    def spec(self) -> DatasetSpec:
        """Return the spec of the ingested data set.

        Raises:
            MissingStage: nothing has been ingested here.

        """
        path = self.ingest / "dataset.json"
        if not path.is_file():
            raise MissingStage(
                f"no data in {self.root}: run 'funnel ingest' (or 'make demo') first"
            )
        return DatasetSpec.model_validate_json(path.read_text(encoding="utf-8"))


def work_folder() -> Path:
    """Return the folder of all working folders: ``work`` in the checkout.

    An installed package has no checkout around it; then it is ``work`` in the current folder.
    """
    checkout = (PROJECT_ROOT / "pyproject.toml").is_file()
    return (PROJECT_ROOT if checkout else Path.cwd()) / "work"


def default_root() -> Path:
    """Return the working folder in use: ``FUNNEL_HOME``, else ``work/current``."""
    return read_settings().home or work_folder() / "current"
