"""The impression log: what was served, as the ranker saw it, one Parquet row a response.

A writer thread takes impressions from a bounded queue, so that a slow disk costs impressions and
neither memory nor a request. A killed process loses what it has not written yet: at most two
seconds of impressions.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from prometheus_client import Counter

from feature_repo.arrays import Float32Array, Int32Array
from feature_repo.erased import ErasedUsers
from feature_repo.files import write_atomically
from feature_repo.parquet_files import set_torn_aside
from serving.impression_files import files_of, impressions_lock
from serving.recommender.filters import AttributeRule

QUEUE = 10_000
ROWS_PER_FILE = 2_000
FLUSH_S = 2.0
_CLOSE_S = 10.0

IMPRESSION_SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("user_id", pa.string()),
        ("time", pa.float64()),
        ("release", pa.string()),
        ("k", pa.int32()),
        ("degraded", pa.list_(pa.string())),
        ("position", pa.string()),
        ("row_position", pa.string()),
        ("items_as_of", pa.string()),
        ("filters", pa.string()),
        ("context", pa.string()),
        ("added", pa.int32()),
        ("item_ids", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("sources", pa.list_(pa.list_(pa.string()))),
        ("propensities", pa.list_(pa.float32())),
        ("numeric", pa.list_(pa.list_(pa.float32()))),
        ("categorical", pa.list_(pa.list_(pa.int32()))),
    ]
)
"""One row is one request; an item's index in the lists is its position, 0 the best."""

# Looking for repetition among ids and floats takes as long as all the rest, and makes files larger.
_REPEATING = [
    "release",
    "degraded.list.element",
    "items_as_of",
    "sources.list.element.list.element",
]

_log = logging.getLogger(__name__)
_files = itertools.count()


@dataclass(frozen=True)
class Impression:
    """One response of ``n`` items: the ranker scored the first ``m``, the others are backfill.

    Attributes:
        request_id: what the response was named; events may refer to it.
        user_id: who asked.
        time: epoch seconds that the features were computed for.
        release: id of the release that answered.
        k: how many items were asked for.
        degraded: the response's losses of quality.
        item_ids: ``n`` ids, best first.
        scores: float32 ``[n]``.
        sources: ``n`` lists of the sources that proposed an item.
        numeric: float32 ``[m, F]``, the ranker's input of the first ``m`` items; NaN: missing.
        categorical: int32 ``[m, C]``, likewise.
        propensities: float32 ``[n]``, the probability of each item at its position; None means
            1.0 for all, as the list is chosen deterministically (exploration would say otherwise
            here).
        position: the newest entry of the event log that was known of the user, if any.
        row_position: the newest entry in the user's streamed row as it was stored, before events
            that had not reached it were merged into it; None: there was no row.
        items_as_of: when the server read item counts from the online store (ISO
            8601, UTC, microseconds); None: it could not, and the counts are the release's own.
        filters: the request's filters as JSON, None: it had none.
        context: the request's context, likewise.
        added: how many items the server had that came after the release.

    """

    request_id: str
    user_id: str
    time: float
    release: str
    k: int
    degraded: list[str]
    item_ids: list[str]
    scores: Float32Array
    sources: list[list[str]]
    numeric: Float32Array
    categorical: Int32Array
    propensities: Float32Array | None = None
    position: str | None = None
    row_position: str | None = None
    items_as_of: str | None = None
    filters: str | None = None
    context: str | None = None
    added: int = 0


class ImpressionLog:
    """Takes impressions from requests and writes them to files a few seconds later, on a thread."""

    def __init__(
        self,
        folder: Path,
        counter: Counter,
        queued: int = QUEUE,
        erased: ErasedUsers | None = None,
    ) -> None:
        """Start the writer.

        Args:
            folder: where files go; made when the first one is written.
            counter: counts impressions by ``outcome``: logged, dropped (the queue was full, or the
                log closed) or failed (the file could not be written).
            queued: how many impressions may wait.
            erased: users whose impressions are not written, even if they were served before.

        """
        self._erased = erased
        self._folder = folder
        self._logged = counter.labels("logged")
        self._dropped = counter.labels("dropped")
        self._failed = counter.labels("failed")
        self._queue: Queue[Impression | None] = Queue(queued)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="impressions", daemon=True)
        self._thread.start()

    def offer(self, impression: Impression) -> None:
        """Queue an impression; never wait or raise. Its arrays must not be changed later."""
        if self._closing.is_set():
            self._dropped.inc()
            return
        try:
            self._queue.put_nowait(impression)
        except Full:
            self._dropped.inc()

    def close(self, timeout_s: float = _CLOSE_S) -> None:
        """Write what is queued and stop the writer; wait for a slow disk at most ``timeout_s``."""
        if not self._closing.is_set():
            self._closing.set()
            try:
                self._queue.put(None, timeout=timeout_s)
            except Full:
                _log.warning("impressions: the writer is blocked; what is queued is lost")
        self._thread.join(timeout_s)

    def _run(self) -> None:
        closed = False
        while not closed:
            batch, closed = self._take()
            if batch:
                self._write(batch)
        self._dropped.inc(self._queue.qsize())  # offered while closing

    def _take(self) -> tuple[list[Impression], bool]:
        """Wait for a file of impressions; the flag says that no more will come."""
        first = self._queue.get()
        if first is None:
            return [], True
        batch = [first]
        end = time.monotonic() + FLUSH_S
        while len(batch) < ROWS_PER_FILE:
            try:
                impression = self._queue.get(timeout=max(0.0, end - time.monotonic()))
            except Empty:
                break
            if impression is None:
                return batch, True
            batch.append(impression)
        return batch, False

    def _write(self, batch: Sequence[Impression]) -> None:
        try:
            with impressions_lock(self._folder, exclusive=False):
                # Under the lock: an erasure takes it after its users were put on the list.
                remaining = self._without_erased(batch)
                self._dropped.inc(len(batch) - len(remaining))
                if remaining:
                    self._write_file(remaining)
        except Exception as error:  # noqa: BLE001 - a full disk today must not cost the impressions of tomorrow
            self._failed.inc(len(batch))
            _log.warning("%d impressions were not written: %s", len(batch), error)
        else:
            self._logged.inc(len(remaining))

    def _without_erased(self, batch: Sequence[Impression]) -> Sequence[Impression]:
        if self._erased is None:
            return batch
        erased = self._erased.among({one.user_id for one in batch})
        return [one for one in batch if one.user_id not in erased] if erased else batch

    def _write_file(self, batch: Sequence[Impression]) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(to_table(batch), sink, compression="zstd", use_dictionary=_REPEATING)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        name = f"{stamp}-{os.getpid()}-{next(_files):06d}.parquet"
        write_atomically(self._folder / name, sink.getvalue().to_pybytes())


def to_table(batch: Sequence[Impression]) -> pa.Table:
    """Return impressions as rows of ``IMPRESSION_SCHEMA``.

    Raises:
        ValueError: the parts of an impression disagree on the number of items.

    """
    if not all(len(one.item_ids) == len(one.scores) == len(one.sources) for one in batch):
        raise ValueError("items, scores and sources of an impression differ in number")
    shown = np.array([len(one.item_ids) for one in batch], dtype=np.int32)
    ranked = np.array([len(one.numeric) for one in batch], dtype=np.int32)
    made = ("scores", "propensities", "numeric", "categorical")
    plain = [name for name in IMPRESSION_SCHEMA.names if name not in made]
    columns: dict[str, Any] = {name: [getattr(one, name) for one in batch] for name in plain}
    chances = [np.ones(n, np.float32) if one.propensities is None else one.propensities
               for one, n in zip(batch, shown, strict=True)]  # fmt: skip
    columns["scores"] = _lists(
        shown, np.concatenate([one.scores for one in batch]).astype(np.float32)
    )
    columns["propensities"] = _lists(shown, np.concatenate(chances).astype(np.float32))
    columns["numeric"] = _vectors(shown, ranked, np.concatenate([one.numeric for one in batch]))
    columns["categorical"] = _vectors(
        shown, ranked, np.concatenate([one.categorical for one in batch])
    )
    return pa.table(
        {field.name: columns[field.name] for field in IMPRESSION_SCHEMA}, schema=IMPRESSION_SCHEMA
    )


def logged_filters(text: str | None) -> dict[str, AttributeRule]:
    """Return the filters of a logged request."""
    raw: dict[str, Any] = json.loads(text) if text else {}
    return {name: AttributeRule.model_validate(rule) for name, rule in raw.items()}


def filters_to_log(filters: dict[str, AttributeRule]) -> str | None:
    """Return a request's filters as they are logged."""
    rules = {
        name: rule.model_dump(by_alias=True, exclude_none=True) for name, rule in filters.items()
    }
    return json.dumps(rules, sort_keys=True) if rules else None


def _lists(lengths: Int32Array, values: Any) -> pa.Array:
    """Return ``values`` as lists of the given lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(
        offsets, values if isinstance(values, pa.Array) else pa.array(values)
    )


def _vectors(shown: Int32Array, ranked: Int32Array, rows: npt.NDArray[Any]) -> pa.Array:
    """Return one list of vectors a response; items that were not ranked have an empty vector.

    Args:
        shown: items of each response.
        ranked: how many of them, the first ones, have a row.
        rows: those rows of all responses, ``[sum(ranked), F]``.

    """
    # Index of each item in its response, [sum(shown)], and the width of its vector: F or 0.
    index = np.arange(shown.sum()) - np.repeat(np.cumsum(shown) - shown, shown)
    widths = np.where(index < np.repeat(ranked, shown), rows.shape[1], 0)
    return _lists(shown, _lists(widths, np.ascontiguousarray(rows).ravel()))


def read_impressions(
    folder: Path, columns: list[str] | None = None, since: float = 0.0
) -> pa.Table:
    """Return all impressions of a folder by time, by default with all columns.

    Files that are still being written are not seen; a torn file is set aside; a folder that is
    absent or empty gives an empty table. A column that a file does not have yet is null. ``since``:
    requests before it (epoch seconds) are left out.
    """
    files = files_of(folder, since)
    if not files:
        return IMPRESSION_SCHEMA.empty_table().select(columns or IMPRESSION_SCHEMA.names)
    dataset = ds.dataset([str(path) for path in files], schema=IMPRESSION_SCHEMA, format="parquet")
    try:
        table = dataset.to_table(columns=columns, filter=ds.field("time") >= since)
    except (pa.ArrowInvalid, OSError):
        # A file was torn, or was merged meanwhile: what is there now is read.
        if not set_torn_aside(files) and all(path.exists() for path in files):
            raise
        return read_impressions(folder, columns, since)
    return table.sort_by("time") if columns is None or "time" in columns else table
