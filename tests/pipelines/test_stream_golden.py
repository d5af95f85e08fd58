"""A checkpoint that an earlier version of the code wrote: nothing of it is lost or mixed up.

``tests/data/stream_checkpoint_97f4b5b.tar.xz`` is a working folder as the code of commit 97f4b5b
left it: events of 8 ingested users, the feature tables, Redis' append-only file and the job's
checkpoint. The job had finished a batch of 40 log entries and was killed in its second. Its states
are of other views than today's, so today's job refuses them, and says which commands to run.
"""

import tarfile
from pathlib import Path

import pytest

from feature_repo.files import read_json
from feature_repo.stores.embedded_redis import release as stop_redis
from feature_repo.stores.feature_store import apply, feature_store, redis_client
from feature_repo.workspace import Workspace
from pipelines.streaming.offline import read_archive
from pipelines.streaming.status import stream_status
from pipelines.workflow.stages import run_features, run_materialize
from tests.support.command_line import funnel

ARCHIVE = Path(__file__).parent.parent / "data" / "stream_checkpoint_97f4b5b.tar.xz"


@pytest.fixture
def stored(tmp_path):
    """The stored working folder, unpacked.

    Its feature registry is rebuilt, as it has full paths.
    """
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    workspace = Workspace(tmp_path)
    apply(feature_store(workspace), workspace)
    yield workspace
    stop_redis(workspace.redis)


@pytest.mark.faults
def test_an_old_checkpoint_is_refused_and_nothing_is_lost(stored):
    client = redis_client(stored)
    generation = read_json(stored.root / "stream" / "generation.json")
    status, archived = stream_status(client), read_archive(stored)
    assert (status.events, status.poison, status.pending) == (39, 1, 50)

    refused = funnel("stream", "--home", stored.root)
    assert refused.returncode == 2
    assert "run 'funnel features' and 'funnel materialize' first" in refused.stderr
    for stage in (run_features, run_materialize):
        stage(stored)
    refused = funnel("stream", "--home", stored.root)
    assert refused.returncode == 2
    assert "the offline tables lack events that the stream has processed" in refused.stderr
    assert "run 'funnel ingest'" in refused.stderr

    after = stream_status(client)
    assert (after.events, after.poison, after.pending) == (39, 1, 50)
    assert after.position == status.position and read_archive(stored).equals(archived)
    assert read_json(stored.root / "stream" / "generation.json") == generation
    assert (stored.root / "stream" / "checkpoint" / "commits").is_dir()
