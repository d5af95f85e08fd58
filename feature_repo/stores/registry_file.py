"""Feast's registry in a file that is replaced in one step.

Feast's own store writes over the file in place: a full disk, or a kill, left a part of it, with
which no command could start any more.
"""

from __future__ import annotations

import os
import uuid
from datetime import UTC, datetime
from pathlib import Path

from feast.infra.registry.file import FileRegistryStore
from feast.protos.feast.core.Registry_pb2 import Registry
from feast.repo_config import RegistryConfig
from google.protobuf.message import DecodeError

from feature_repo.files import write_atomically
from feature_repo.parquet_files import set_aside
from feature_repo.stores.feast_fixes import correct_feast
from feature_repo.workspace import default_root


class AtomicFileRegistryStore(FileRegistryStore):
    """Feast's file, whole at any moment; a damaged one is set aside, and ``apply`` begins anew.

    A relative path is one in the working folder, where the definitions and the stores are too.
    """

    def __init__(self, registry_config: RegistryConfig, repo_path: Path) -> None:  # noqa: ARG002
        """``repo_path`` is the folder of the definitions, which Feast puts its file in."""
        super().__init__(registry_config, default_root().resolve())
        correct_feast()

    def get_registry_proto(self) -> Registry:
        """Return the registry.

        Raises:
            FileNotFoundError: there is none, or it cannot be read: Feast then begins a new one.

        """
        try:
            return super().get_registry_proto()
        except DecodeError as error:
            set_aside(self._filepath, f"{error}; 'funnel materialize' fills a new one")
            raise FileNotFoundError(os.fspath(self._filepath)) from None

    def _write_registry(self, registry_proto: Registry) -> None:
        registry_proto.version_id = str(uuid.uuid4())
        registry_proto.last_updated.FromDatetime(datetime.now(UTC))
        write_atomically(self._filepath, registry_proto.SerializeToString())
