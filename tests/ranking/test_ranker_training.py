"""Interrupted, repeated and changed runs of ``train_rankers``."""

import json
import os
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from feature_repo.workspace import PROJECT_ROOT, MissingStage
from ranking.config import KINDS, RankerConfig
from ranking.report import RankerReport
from ranking.training.train_rankers import train_rankers
from tests.support import forked
from tests.support.planted_rows import CONFIG, Trained, planted, splits


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rerun(folder: Path, config: RankerConfig = CONFIG) -> list[str]:
    """Run again and return the kinds that were trained."""
    seen: dict[str, dict[str, float]] = {}
    train_rankers(
        splits(),
        folder,
        config,
        lambda kind, figures: seen.setdefault(kind, {}).update(figures),
    )
    return [kind for kind, figures in seen.items() if "resumed" not in figures]


def killed_training(folder: Path) -> None:
    """Train, and kill this process in the middle of the second booster."""

    def strike(kind: str, figures: dict[str, float]) -> None:
        if kind == "lightgbm" and "buy_trees" in figures:
            os.kill(os.getpid(), signal.SIGKILL)

    train_rankers(splits(), folder, CONFIG, strike)


def test_killed_run_resumes_to_the_same_bytes(trained: Trained, tmp_path: Path) -> None:
    """Another process finishes what a killed one began."""
    code, said = forked.run(killed_training, tmp_path, out=tmp_path.with_suffix(".log"))
    assert code == -signal.SIGKILL, said
    left = {path.name for path in tmp_path.iterdir()}
    assert {"popularity", "logistic", ".staging-lightgbm"} == left
    assert rerun(tmp_path) == ["lightgbm", "lambdarank", "dcn"]
    assert contents(tmp_path) == contents(trained.folder)


def test_only_what_changed_is_trained_again(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(trained.folder, folder)
    assert rerun(folder) == []
    assert contents(folder) == contents(trained.folder)
    fewer = replace(CONFIG, logistic=replace(CONFIG.logistic, regularisation=0.1), kinds=KINDS[:3])
    assert rerun(folder, fewer) == ["logistic"]
    (folder / "lightgbm" / "booster_0.txt").write_text("damaged")
    assert rerun(folder, fewer) == ["lightgbm"]


def test_report_is_what_was_returned(trained: Trained) -> None:
    assert RankerReport.load(trained.folder) == trained.report
    assert list(json.loads((trained.folder / "report.json").read_text())["kinds"]) == sorted(KINDS)


def test_a_report_of_an_earlier_version_says_what_to_do(trained: Trained, tmp_path: Path) -> None:
    report = json.loads((trained.folder / "report.json").read_text())
    del report["config"]
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(MissingStage, match="run 'funnel train' again"):
        RankerReport.load(tmp_path)


def test_nothing_on_disk_is_a_pickle_or_names_this_machine(trained: Trained) -> None:
    for name, content in contents(trained.folder).items():
        assert Path(name).suffix in {".json", ".txt", ".npz", ".onnx"}
        assert str(PROJECT_ROOT).encode() not in content, name


def test_config_refuses_unknown_kinds_and_survives_json() -> None:
    with pytest.raises(ValueError, match="unknown kinds"):
        RankerConfig(kinds=("svm",))
    with pytest.raises(ValueError, match="choose from"):
        RankerConfig(kinds=())
    assert TypeAdapter(RankerConfig).validate_json(json.dumps(asdict(CONFIG))) == CONFIG


def test_data_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    wrong = replace(planted(3), labels=planted(3).labels[:, :1])
    with pytest.raises(ValueError, match="labels"):
        train_rankers(replace(splits(), selection=wrong), tmp_path, CONFIG, print)
