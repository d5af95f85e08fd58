import pytest

from feature_repo.dataset import load_spec
from feature_repo.workspace import Workspace
from pipelines.ingest.ingest import ingest
from pipelines.synthetic.generate import WorldConfig, generate
from pipelines.workflow import stages
from pipelines.workflow.data_sets import SPECS
from tests.support.ingest_folder import World
from tests.support.tiny_world import tiny_world

SMALL = WorldConfig(users=60, items=50, days=30, seed=11, events_per_user=100.0)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def tiny(copy, tmp_path):
    """A copy of the tiny world with features, models and a release, without Redis."""
    with copy(tiny_world(), tmp_path / "w") as workspace:
        yield workspace


@pytest.fixture(scope="session")
def featured(tmp_path_factory):
    """A world of 60 users with offline features, without models; tests change copies of it."""
    workspace = Workspace(tmp_path_factory.mktemp("featured"))
    generate(workspace.root / "raw", SMALL)
    spec = load_spec(SPECS / "synthetic.toml")
    ingest(spec, workspace.root / "raw", workspace, shift_to_now=True)
    stages.run_features(workspace)
    return workspace
