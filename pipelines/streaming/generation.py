"""The generation of a checkpoint: its number, and where in the event log its stream starts."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from feature_repo.files import write_json
from feature_repo.workspace import Workspace


class Generation(BaseModel):
    """The file ``stream/generation.json``, written when a checkpoint is made.

    Attributes:
        number: 1 for the first checkpoint of a working folder, then rising.
        start: the log position after which the checkpoint's stream starts.
        partitions: the number of shuffle partitions, fixed for the checkpoint.
        declared: the version of the declared aggregates whose states it holds.

    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    number: int = Field(validation_alias="generation", serialization_alias="generation")
    start: str = Field(validation_alias="from", serialization_alias="from")
    partitions: int
    declared: str = ""

    @classmethod
    def read(cls, workspace: Workspace) -> Generation | None:
        """Return the stored generation, None if no job was ever started."""
        path = _path(workspace)
        return cls.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else None

    def write(self, workspace: Workspace) -> None:
        """Store the generation."""
        write_json(_path(workspace), self.model_dump(by_alias=True))


def checkpoint_folder(workspace: Workspace) -> Path:
    """Return Spark's checkpoint of the streaming job."""
    return workspace.root / "stream" / "checkpoint"


def _path(workspace: Workspace) -> Path:
    return workspace.root / "stream" / "generation.json"
