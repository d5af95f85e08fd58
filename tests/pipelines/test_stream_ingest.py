"""Events that came through the log are ingested from the stream's archive.

Each is ingested once, with its own times.
"""

from datetime import UTC, datetime

import pytest

from feature_repo import columns as c
from feature_repo.workspace import MissingStage
from pipelines.ingest.ingest import ingest
from pipelines.ingest.ingested import data_version, log_position, read_events
from pipelines.streaming.job import StreamConfig, StreamJob
from pipelines.streaming.offline import EVENT_SCHEMA, Part, archive, read_archive, write_part
from pipelines.workflow.stages import run_materialize


def archived(number, event_id):
    now = datetime.now(UTC).replace(microsecond=0)
    return {
        "position": f"{1_700_000_000_000 + number}-0", "event_id": event_id, "user_id": "u",
        "item_id": "i0001", "type": "view", "timestamp": now, "accepted_at": now,
    }  # fmt: skip


def test_archived_events_are_ingested_once(copied):
    before = read_events(copied)
    known = before[c.EVENT_ID].iloc[0]
    version = data_version(copied)
    rows = [archived(2, "b"), archived(1, "a"), archived(3, known)]
    write_part(archive(copied), Part(1, 0, 0), rows, EVENT_SCHEMA)
    for _ in range(2):
        ingest(copied.spec(), copied.root / "raw", copied, shift_to_now=True)
        after = read_events(copied)
        assert len(after) == len(before) + 2
    assert log_position(copied) == rows[2]["position"]
    assert data_version(copied) != version
    new = after[after[c.EVENT_ID].isin(["a", "b"])]
    assert set(new[c.TIMESTAMP]) <= {row["timestamp"] for row in rows}
    assert not len(read_archive(copied, log_position(copied)))


def test_a_new_checkpoint_is_refused_while_the_tables_lack_events(copied):
    run_materialize(copied)
    write_part(archive(copied), Part(1, 0, 0), [archived(1, "a")], EVENT_SCHEMA)
    with pytest.raises(MissingStage, match="funnel ingest"):
        StreamJob(copied, StreamConfig()).run(rebuild=True)
