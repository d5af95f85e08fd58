"""Lets one process of a server keep the impressions to few files."""

from __future__ import annotations

import logging
import threading
import time
from datetime import timedelta

import pyarrow as pa

from feature_repo.settings import read_settings
from feature_repo.workspace import Workspace
from serving.impression_files import tidy
from serving.impressions import IMPRESSION_SCHEMA

_TIDY_S = 600.0
_log = logging.getLogger(__name__)


class ImpressionKeeper:
    """Tidies the impressions now and then, on a thread."""

    def __init__(self, workspace: Workspace) -> None:
        self._folder = workspace.impressions
        self._keep = timedelta(days=read_settings().impression_days)
        self._next = 0.0
        self._thread: threading.Thread | None = None

    def step(self) -> None:
        """Begin to tidy if it is time to and the last time is over; never wait."""
        if time.monotonic() < self._next or (self._thread and self._thread.is_alive()):
            return
        self._next = time.monotonic() + _TIDY_S
        self._thread = threading.Thread(target=self._tidy, name="tidy", daemon=True)
        self._thread.start()

    def _tidy(self) -> None:
        try:
            tidy(self._folder, IMPRESSION_SCHEMA, self._keep)
        except (OSError, pa.ArrowException) as error:
            _log.warning("the files of impressions were not merged: %s", error)
