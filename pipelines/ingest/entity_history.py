"""The history of users and items: rows of earlier ingests stay, and one of each id is the current.

``<kind>_history.parquet`` has a row for each id and ``valid_from``, sorted by both. Only the
current rows are in ``<kind>.parquet``, which the other stages read: an id whose rows are all of the
future has none there.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec
from feature_repo.erased import ErasedUsers
from feature_repo.parquet_files import DamagedTable
from feature_repo.workspace import Workspace
from pipelines.ingest.entities import EntityRows
from pipelines.ingest.ingested import INGEST_ANEW
from pipelines.ingest.report import IngestReport


def history_file(ingest: Path, kind: str) -> Path:
    """Return the file of the history of ``users`` or ``items``."""
    return ingest / f"{kind}_history.parquet"


class Histories:
    """The histories of a data set's tables, as far as these have ``valid_from``."""

    def __init__(
        self, workspace: Workspace, spec: DatasetSpec, erased: ErasedUsers, report: IngestReport
    ) -> None:
        self._ingest = workspace.ingest
        self._erased = erased
        self._report = report
        tables = {"users": spec.users, "items": spec.items}
        self._kinds = [kind for kind, table in tables.items() if table and table.valid_from]

    def read(self, entities: dict[str, EntityRows], shift_s: int) -> dict[str, EntityRows]:
        """Return the tables with the rows of earlier ingests, and report which are replaced.

        Of two rows of one id and time the newly read one counts.

        Args:
            entities: the tables as their files are.
            shift_s: seconds that were added to the times of earlier ingests.

        Raises:
            DamagedTable: a history cannot be read.

        """
        return entities | {kind: self._read(kind, entities[kind], shift_s) for kind in self._kinds}

    def _read(self, kind: str, rows: EntityRows, shift_s: int) -> EntityRows:
        key = rows.valid.columns[0]
        stored = _stored(history_file(self._ingest, kind), rows.valid, shift_s)
        if key == c.USER:
            stored = stored[~stored[key].isin(self._erased.among(stored[key].unique()))]
        if not len(stored):
            return rows._replace(history=rows.valid)

        both = pd.concat([stored, rows.valid], ignore_index=True)
        keys = [key, c.VALID_FROM]
        merged = both[~both.duplicated(keys, keep="last")].sort_values(keys, ignore_index=True)
        pairs = both[both.duplicated(keys, keep=False)].astype(str)
        changed = int((~pairs.duplicated(keep=False)).sum()) // 2
        if changed:
            self._report.notes.append(
                f"{changed:,} {kind}: a row replaces that of an earlier ingest with the same "
                f"{key} and {c.VALID_FROM}"
            )
        return rows._replace(valid=merged, history=merged)

    def current(self, entities: dict[str, EntityRows], now: pd.Timestamp) -> dict[str, EntityRows]:
        """Return the tables with the newest row of each id that is not of the future."""
        tables = dict(entities)
        for kind in self._kinds:
            history = entities[kind].valid
            past = history[history[c.VALID_FROM] <= now].drop(columns=c.VALID_FROM)
            newest = past[~past.duplicated(past.columns[0], keep="last")]
            if ahead := len(history) - len(past):
                self._report.notes.append(
                    f"{ahead:,} of {len(history):,} rows of {kind} are of the future by "
                    f"{c.VALID_FROM}: they count from their time on, with the stages run after it"
                )
            tables[kind] = entities[kind]._replace(valid=newest.reset_index(drop=True))
            setattr(self._report, kind, len(newest))
        return tables


def _stored(path: Path, like: pd.DataFrame, shift_s: int) -> pd.DataFrame:
    """Return the rows of earlier ingests with the times of their files, in ``like``'s columns."""
    if not path.is_file():
        return like.iloc[:0]
    try:
        stored = pq.read_table(path).to_pandas()
    except (pa.ArrowInvalid, OSError) as error:
        raise DamagedTable(f"{path} cannot be read ({error}): {INGEST_ANEW}") from None
    for name, kind in like.dtypes.items():
        if isinstance(kind, pd.DatetimeTZDtype):
            stored[name] = stored[name].dt.tz_convert("UTC") - pd.Timedelta(seconds=shift_s)
        elif kind == "object":  # lists, which Parquet gives as arrays
            stored[name] = stored[name].map(list)
    return stored[list(like.columns)].astype(like.dtypes.to_dict())
