"""The ingest manifest: the ingested files and batches of events, and the version of the data.

It is replaced as the last step of an ingest, so a run that was killed before has changed nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from feature_repo.dataset import DatasetSpec, SpecError
from feature_repo.files import LockHeld, locked, write_json
from feature_repo.hashing import fingerprint
from feature_repo.workspace import MissingStage, Workspace
from pipelines import display

LOG_START = "0-0"
"""The log position before every entry of the event log."""


class IngestedBatch(BaseModel):
    """One batch of ingested events: its Parquet files, relative to ``ingest/``, and their rows."""

    model_config = ConfigDict(frozen=True)

    id: str
    rows: int
    files: tuple[str, ...]


class IngestManifest(BaseModel):
    """What has been ingested into a working folder.

    Attributes:
        spec: fingerprint of the data set's description.
        files: name of each ingested file by the SHA-256 of its bytes.
        batches: the batches of events that count.
        shift_s: seconds added to all times; None before the first ingest has fixed it.
        data_version: changes with every change of the ingested data.
        log_position: newest entry of the event log among the events; None: there is none.
        erased: numbers of the erasures that removed rows; None: no erasure did.

    """

    model_config = ConfigDict(frozen=True)

    spec: str
    files: dict[str, str] = {}
    batches: tuple[IngestedBatch, ...] = ()
    shift_s: int | None = None
    data_version: str = ""
    log_position: str | None = None
    erased: tuple[str, ...] | None = None

    @classmethod
    def read(cls, workspace: Workspace) -> IngestManifest:
        """Read the manifest of a working folder.

        Raises:
            MissingStage: nothing has been ingested there.

        """
        path = manifest_path(workspace)
        if not path.is_file():
            raise MissingStage(
                f"no data in {workspace.root}: run 'funnel ingest' (or 'make demo') first"
            )
        return cls.model_validate_json(path.read_text(encoding="utf-8"))

    @classmethod
    def read_or_new(cls, workspace: Workspace, spec: DatasetSpec) -> IngestManifest:
        """Read the manifest of a working folder, or return an empty one if nothing was ingested.

        Raises:
            SpecError: the folder holds a data set of another description.

        """
        # Features may be declared at any time: they change no ingested table.
        version = fingerprint(spec.model_dump_json(exclude={"features"}))
        if not manifest_path(workspace).is_file():
            return cls(spec=version)
        manifest = cls.read(workspace)
        if manifest.spec != version:
            raise SpecError(
                f"{workspace.root} holds another dataset.toml or other optional tables; "
                "choose a new working folder with --home, or remove that one"
            )
        return manifest

    def write(self, workspace: Workspace) -> None:
        """Replace the manifest of a working folder."""
        write_json(manifest_path(workspace), self.model_dump(mode="json", exclude_none=True))

    @property
    def position(self) -> str:
        """The newest entry of the event log among the ingested events."""
        return self.log_position or LOG_START

    @property
    def event_files(self) -> list[str]:
        """The Parquet files of all batches, relative to ``ingest/``."""
        return [name for batch in self.batches for name in batch.files]

    def with_batch(self, batch: IngestedBatch) -> IngestManifest:
        """Return the manifest with one more batch."""
        return self.model_copy(update={"batches": (*self.batches, batch)})

    def with_erasures(self, erasures: Iterable[str]) -> IngestManifest:
        """Return the manifest after these erasures removed rows: the data has a new version."""
        erased = sorted({*(self.erased or ()), *erasures})
        version = fingerprint(self.data_version, erased)
        return self.model_copy(update={"erased": tuple(erased), "data_version": version})


def manifest_path(workspace: Workspace) -> Path:
    """Return where a working folder keeps its manifest."""
    return workspace.ingest / "manifest.json"


@contextmanager
def ingest_lock(workspace: Workspace) -> Iterator[None]:
    """Lock the ingested tables against other writers, if there is a working folder.

    Whoever has to wait says for whom.
    """
    if not workspace.root.is_dir():
        yield
        return
    path = workspace.root / ".ingest.lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path, blocking=False))
        except LockHeld as error:
            display.warning(f"{error.holder} works on the ingested events: waiting until it ends")
            stack.enter_context(locked(path))
        yield
