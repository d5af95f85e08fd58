"""A search goes on after a kill, is shared by processes, and is never worse than the defaults."""

import re
import shutil
import signal
from dataclasses import dataclass

import optuna
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState

from feature_repo.files import read_json, write_json
from feature_repo.sanity import CannotLearn
from feature_repo.workspace import MissingStage, Workspace
from pipelines.search.ranker_search import RankerSearch
from pipelines.search.results import Tuned
from pipelines.search.run import SearchStopped, run_search
from pipelines.search.study import SearchConfig
from pipelines.search.tower_search import TowerSearch
from pipelines.workflow import stages
from pipelines.workflow.train_options import TrainOptions
from ranking.config import RankerConfig
from retrieval.towers.config import TowerTrainingConfig
from retrieval.towers.model import TowerShape
from tests.support.forked import Forked
from tests.support.ingest_folder import rows_of, spec_of
from tests.support.parabola_search import TOP, Parabola, search
from tests.support.small_world import silent
from tests.support.tiny_world import RANKERS, SAMPLE, TOWERS
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    """An empty store of runs: to make one takes MLflow seconds."""
    folder = tmp_path_factory.mktemp("tracking")
    MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}").create_experiment("funnel")
    return folder


@pytest.fixture
def root(world, tracking):
    shutil.copytree(tracking, world.workspace.tracking)
    world.write("events.csv", rows_of("ann,x,2024-05-01", "bob,y,2024-05-02"))
    world.ingest(spec_of("events*.csv"))
    return world.workspace.root


def trials(root, found):
    return optuna.load_study(
        study_name=found.study, storage=f"sqlite:///{root / 'tuning' / 'studies.db'}"
    ).trials


def test_defaults_are_trial_0_and_never_pruned_and_the_best_is_at_least_as_good(root):
    found = search(root, 1)
    assert found.trial == 0 and found.settings == {"x": 0.0, "idle": 0.5}
    assert found.value == found.default_value == pytest.approx(1 - TOP**2)
    assert found.importance == {}  # of one trial nothing can be said
    more = search(root, 14)
    ended = trials(root, more)
    assert ended[0].params == found.settings and ended[0].state == TrialState.COMPLETE
    assert any(trial.state == TrialState.PRUNED for trial in ended)
    assert more.value > more.default_value == found.value
    assert more.settings["x"] == pytest.approx(TOP, abs=0.2)
    assert more.importance.keys() == {"x", "idle"} and sum(
        more.importance.values()
    ) == pytest.approx(1.0)
    assert read_json(root / "tuning" / "parabola.json") == more.to_dict()


def test_the_same_seed_gives_the_same_trials_also_when_stopped_between(root):
    whole = [trial.params for trial in trials(root, search(root, 5))]
    (root / "tuning" / "studies.db").unlink()
    search(root, 2)
    assert [trial.params for trial in trials(root, search(root, 5))] == whole
    (root / "tuning" / "studies.db").unlink()
    assert [trial.params for trial in trials(root, search(root, 5, seed=8))] != whole


@pytest.mark.parametrize("at", [0, 3])
def test_a_killed_search_continues_and_retries_the_killed_trial(root, at):
    process = Forked(search, root, 6, 1, Parabola(wait_at=at))
    wait_until(lambda: (root / "waiting").is_file() or process.poll() is not None)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    found = search(root, 6)
    ended = trials(root, found)
    assert [trial.number for trial in ended if trial.state == TrialState.FAIL] == [at]
    assert len(ended) == 7 and found.trials["failed"] == 1
    again = next(trial for trial in ended if trial.user_attrs.get("retry") == 1)
    assert again.params == ended[at].params
    assert found.default_value == pytest.approx(
        1 - TOP**2
    )  # also if it was the defaults that were killed
    assert not list((root / "tuning" / found.study).glob("trial-*"))


@dataclass(frozen=True)
class Fails(Parabola):
    """A parabola of which one side fails its checks."""

    name = "fails"
    below: float = 0.5

    def value(self, data, params, folder, report):
        if params["x"] < self.below:
            raise CannotLearn("held-out labels leak")
        return super().value(data, params, folder, report)


def test_settings_that_fail_a_check_get_0_and_the_search_continues(root):
    found = search(root, 12, plan=Fails())
    failed = [
        trial
        for trial in trials(root, found)
        if trial.user_attrs.get("failed") == "held-out labels leak"
    ]
    assert failed and all(trial.value == 0.0 and trial.params["x"] < 0.5 for trial in failed)
    assert found.settings["x"] >= 0.5 and found.value > 0.9


def test_a_search_in_which_nothing_could_learn_has_no_result(root):
    with pytest.raises(CannotLearn, match="no trial of .* could learn: held-out labels leak"):
        search(root, 2, plan=Fails(below=2.0))
    assert not (root / "tuning" / "fails.json").exists()


@pytest.mark.faults  # three processes that each train
def test_processes_share_a_study(root):
    found = search(root, 6, jobs=2)
    ended = trials(root, found)
    assert len(ended) == 6
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in ended)
    assert len({tuple(trial.params.values()) for trial in ended}) == 6
    assert len({trial.user_attrs["worker"] for trial in ended}) <= 2


def test_other_data_begin_a_new_study(root, world):
    first = search(root, 2)
    world.write("events-2.csv", rows_of("cid,z,2024-05-03"))
    world.ingest(spec_of("events*.csv"))
    second = search(root, 2)
    assert second.study != first.study and second.data_version != first.data_version
    assert len(trials(root, second)) == 2


def test_no_trial_starts_after_the_deadline(root):
    with pytest.raises(SearchStopped, match="--minutes"):
        search(root, 5, minutes=0.0)


def test_every_trial_is_a_run_of_mlflow_that_names_its_study_and_none_is_run_twice(root):
    found = search(root, 3)
    assert search(root, 3) == found
    client = MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("funnel").experiment_id
    runs = client.search_runs([experiment], f"tags.study = '{found.study}'")
    assert {run.data.tags["trial"] for run in runs} == {"0", "1", "2"}
    first = next(run for run in runs if run.data.tags["trial"] == "0")
    assert first.data.params["x"] == "0.0"
    assert first.data.metrics["best_height"] == pytest.approx(found.default_value)
    assert len(client.get_metric_history(first.info.run_id, "height")) == Parabola.steps


@pytest.mark.parametrize(
    ("plan", "stage"), [(TowerSearch(), "features"), (RankerSearch(), "train")]
)
def test_a_search_before_its_turn_says_which_stage_to_run(root, plan, stage):
    with pytest.raises(MissingStage, match=f"run 'funnel {stage}' first"):
        run_search(Workspace(root), plan, SearchConfig(1), silent)


def test_training_with_tuned_settings_needs_some(root):
    with pytest.raises(MissingStage, match="run 'funnel tune towers' first"):
        Tuned.of(Workspace(root))


def test_defaults_mean_the_default_configurations():
    assert TowerSearch().settings(TowerSearch().defaults()[0]) == (
        TowerTrainingConfig(),
        TowerShape(),
    )
    for params in RankerSearch().defaults():
        assert RankerSearch().settings(params) == RankerConfig(kinds=(params["kind"],))


def test_towers_begin_with_the_default_figure(tiny):
    result = run_search(tiny, TowerSearch(TOWERS), SearchConfig(2), silent)
    report = read_json(tiny.models / "retrieval" / "report.json")
    assert result.default_value == pytest.approx(report["towers"]["recall"])
    assert result.value >= result.default_value
    assert {trial.params["batch"] for trial in trials(tiny.root, result)} - {TOWERS.batch}


def test_rankers_begin_with_the_default_of_every_kind(tiny):
    result = run_search(tiny, RankerSearch(RANKERS, SAMPLE), SearchConfig(4), silent)
    reports = read_json(tiny.models / "ranking" / "report.json")["kinds"]
    defaults = trials(tiny.root, result)[:3]
    assert [trial.params["kind"] for trial in defaults] == ["lambdarank", "lightgbm", "dcn"]
    ndcg = [reports[trial.params["kind"]]["ndcg"] for trial in defaults]
    assert [trial.value for trial in defaults] == pytest.approx(ndcg)
    assert result.default_value == pytest.approx(max(ndcg))
    assert result.value >= result.default_value


@pytest.mark.faults  # another training
def test_training_uses_what_was_tuned_and_says_so(tiny, capsys):
    towers = TowerSearch().defaults()[0] | {"batch": 2_000, "dropout": 0.2}
    rankers = RankerSearch().defaults()[0] | {"trees.leaves": 9}
    for name, settings in (("towers", towers), ("rankers", rankers)):
        _write_result(tiny, name, settings)
    assert Tuned.of(tiny).ranker_config.trees.leaves == 9
    stages.run_train(tiny, TrainOptions(tuned=True))
    printed = capsys.readouterr().err.replace("\n", " ")
    assert len(re.findall(r"tuned, recall@100 0\.5000", printed)) == 2
    retrieval = read_json(tiny.models / "retrieval" / "report.json")
    assert retrieval["settings"]["batch"] == 2_000 and retrieval["sizes"]["dropout"] == 0.2
    assert list(read_json(tiny.models / "ranking" / "report.json")["kinds"]) == ["lambdarank"]
    booster = (tiny.models / "ranking" / "lambdarank" / "booster_0.txt").read_text()
    assert "[num_leaves: 9]" in booster


def _write_result(workspace, name, settings):
    default = {
        "default_value": 0.4,
        "default_settings": settings,
        "trials": {"complete": 1},
        "importance": {},
    }
    about = {
        "study": f"{name}-1",
        "figure": "recall@100",
        "data_version": "1",
        "trial": 1,
        "value": 0.5,
    }
    write_json(workspace.tuning / f"{name}.json", {**about, "settings": settings, **default})
