"""Releases are made, promoted, rolled back and listed.

What is refused leaves the pointer where it was.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from feature_repo.files import link_atomically, read_json, write_json
from feature_repo.workspace import MissingStage, Workspace
from pipelines.commands.releases import releases as command
from pipelines.training.release import make_release
from pipelines.training.release_history import HISTORY
from pipelines.training.release_pointer import (
    UnknownRelease,
    current_release,
    find_release,
    promote,
    releases,
    rollback,
)
from serving.releases.manifest import MANIFEST, BadRelease, write_manifest
from tests.support.damaged_release import DAMAGE, change_json
from tests.support.tiny_release import PROVENANCE, write_trained

BAD = "ranker that gives NaN"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace without a release: the tiny release's models, and its features registered."""
    return write_trained(tmp_path_factory.mktemp("trained")).root


@pytest.fixture
def workspace(trained: Path, tmp_path: Path) -> Workspace:
    return Workspace(shutil.copytree(trained, tmp_path / "w"))


@pytest.fixture
def make(workspace: Workspace, tmp_path: Path) -> Callable[..., str]:
    """Make a release whose rules have a quota, and return its id."""

    def made(quota: int) -> str:
        rules = tmp_path / "rules.toml"
        rules.write_text(f"max_per_category = {quota}\n")
        return make_release(workspace, rules).name

    return made


def damage(workspace: Workspace, release_id: str, name: str = BAD) -> None:
    DAMAGE[name](workspace.releases / release_id)


def history(workspace: Workspace) -> list[tuple[str | None, str, str]]:
    lines = (workspace.releases / HISTORY).read_text().splitlines()
    return [(entry["previous"], entry["release"], entry["by"]) for entry in map(json.loads, lines)]


def current(workspace: Workspace) -> str:
    return current_release(workspace).name


class TestMaking:
    def test_it_becomes_the_current_one(
        self, workspace: Workspace, make: Callable[[int], str]
    ) -> None:
        one, two = make(1), make(2)
        assert one != two and current(workspace) == two
        assert history(workspace) == [(None, one, "release"), (one, two, "release")]

    def test_again_changes_nothing(self, workspace: Workspace, make: Callable[[int], str]) -> None:
        one = make(1)
        manifest = (workspace.releases / one / MANIFEST).stat()
        assert make(1) == one and len(history(workspace)) == 1
        assert (workspace.releases / one / MANIFEST).stat().st_ino == manifest.st_ino

    def test_a_damaged_one_is_put_right(
        self, workspace: Workspace, make: Callable[[int], str]
    ) -> None:
        one = make(1)
        damage(workspace, one, "half-copied")
        assert make(1) == one
        assert [info.problem for info in releases(workspace)] == [None]

    def test_bad_models_leave_the_pointer(
        self, workspace: Workspace, make: Callable[[int], str]
    ) -> None:
        one = make(1)
        spoil = change_json(
            "logistic/calibration.json", lambda of: of["heads"][0].update(slope=float("nan"))
        )
        spoil(workspace.models / "ranking")
        with pytest.raises(
            BadRelease, match="the calibration of 'view' is not monotonically increasing"
        ):
            make(2)
        assert current(workspace) == one and len(history(workspace)) == 1

    def test_features_that_are_not_registered_are_said(
        self, workspace: Workspace, make: Callable[[int], str]
    ) -> None:
        workspace.feast_registry.unlink()
        with pytest.raises(BadRelease, match="run 'funnel materialize'"):
            make(1)
        assert not (workspace.releases / "current").exists()

    def test_two_at_once_take_turns(self, workspace: Workspace) -> None:
        made: list[Path] = []
        threads = [
            threading.Thread(target=lambda: made.append(make_release(workspace))) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 3 and len(set(made)) == 1
        assert not list(workspace.releases.glob(".staging-*"))


class TestPromoting:
    def test_by_id_and_by_its_beginning(
        self, workspace: Workspace, make: Callable[[int], str]
    ) -> None:
        one, two = make(1), make(2)
        assert promote(workspace, one).name == current(workspace) == one
        assert promote(workspace, two[:6]).name == current(workspace) == two
        assert history(workspace)[2:] == [(two, one, "promote"), (one, two, "promote")]

    def test_the_current_one_again_is_no_news(
        self, workspace: Workspace, make: Callable[[int], str]
    ) -> None:
        one = make(1)
        promote(workspace, one)
        assert len(history(workspace)) == 1

    @pytest.mark.parametrize(
        "name", [BAD, "truncated index.faiss", "missing manifest.json", "a link to nowhere"]
    )
    def test_a_refused_one_leaves_the_pointer(
        self, workspace: Workspace, make: Callable[[int], str], name: str
    ) -> None:
        one, two = make(1), make(2)
        damage(workspace, one, name)
        link = (workspace.releases / "current").lstat()
        with pytest.raises(BadRelease, match=one):
            promote(workspace, one)
        assert current(workspace) == two and len(history(workspace)) == 2
        assert (workspace.releases / "current").lstat().st_ino == link.st_ino

    @pytest.mark.parametrize("name", ["", "nowhere", "current", "../models", ".lock", HISTORY])
    def test_an_unknown_one_is_said(
        self, workspace: Workspace, make: Callable[[int], str], name: str
    ) -> None:
        make(1)
        with pytest.raises(UnknownRelease, match="no release"):
            promote(workspace, name)

    def test_a_beginning_of_several_names_them(
        self, workspace: Workspace, make: Callable[[int], str]
    ) -> None:
        one = make(1)
        for end in ("x", "y"):
            shutil.copytree(workspace.releases / one, workspace.releases / f"{one[:4]}{end}")
        with pytest.raises(
            UnknownRelease, match=f"several releases begin with .*{one}, {one[:4]}x, {one[:4]}y"
        ):
            find_release(workspace, one[:4])
        assert find_release(workspace, one).name == one
        assert find_release(workspace, f"{one[:4]}x").name == f"{one[:4]}x"

    def test_an_id_may_be_a_link_to_what_took_its_place(
        self, workspace: Workspace, make: Callable[[int], str]
    ) -> None:
        one = make(1)
        link_atomically(workspace.releases / "0old", workspace.releases / one)
        assert find_release(workspace, "0old").name == find_release(workspace, "0o").name == one
        assert [info.id for info in releases(workspace)] == [one]


class TestRollingBack:
    def test_again_and_again_goes_further_back(
        self, workspace: Workspace, make: Callable[[int], str]
    ) -> None:
        one, two, three = make(1), make(2), make(3)
        assert rollback(workspace).name == current(workspace) == two
        assert rollback(workspace).name == current(workspace) == one
        with pytest.raises(UnknownRelease, match=f"no release was served before {one}"):
            rollback(workspace)
        assert current(workspace) == one
        assert history(workspace)[3:] == [(three, two, "rollback"), (two, one, "rollback")]

    def test_after_a_new_promotion_it_goes_back_to_what_was_served(
        self, workspace: Workspace, make: Callable[[int], str]
    ) -> None:
        one, two, three = make(1), make(2), make(3)
        rollback(workspace)
        promote(workspace, one)
        assert rollback(workspace).name == two
        assert rollback(workspace).name == one
        promote(workspace, three)
        assert rollback(workspace).name == one

    def test_a_refused_one_leaves_the_pointer(
        self, workspace: Workspace, make: Callable[[int], str]
    ) -> None:
        one, two = make(1), make(2)
        damage(workspace, one)
        with pytest.raises(BadRelease, match=one):
            rollback(workspace)
        assert current(workspace) == two and len(history(workspace)) == 2

    def test_deleted_ones_are_passed_over(
        self, workspace: Workspace, make: Callable[[int], str]
    ) -> None:
        one, two, three = make(1), make(2), make(3)
        shutil.rmtree(workspace.releases / two)
        assert rollback(workspace).name == one
        promote(workspace, three)
        shutil.rmtree(workspace.releases / three)
        assert rollback(workspace).name == one, "also from a release that was deleted itself"

    def test_a_pointer_that_was_moved_by_hand_is_believed(
        self, workspace: Workspace, make: Callable[[int], str]
    ) -> None:
        one, two, three = make(1), make(2), make(3)
        link_atomically(workspace.releases / "current", workspace.releases / one)
        assert rollback(workspace).name == three
        assert rollback(workspace).name == two

    def test_without_a_history_there_is_nowhere_to_go(
        self, workspace: Workspace, make: Callable[[int], str]
    ) -> None:
        with pytest.raises(MissingStage, match="run 'funnel release' first"):
            rollback(workspace)
        make(1)
        make(2)
        (workspace.releases / HISTORY).write_text('{"time": "t", "rel\n[]\n')
        with pytest.raises(UnknownRelease, match="funnel release list"):
            rollback(workspace)


def test_the_list_tells_all_and_survives_damage(
    workspace: Workspace, make: Callable[[int], str]
) -> None:
    one, two, three = make(1), make(2), make(3)
    for name, day in ((one, 3), (two, 1), (three, 2)):
        manifest = read_json(workspace.releases / name / MANIFEST)
        write_json(
            workspace.releases / name / MANIFEST,
            manifest | {"created_at": f"2026-01-0{day}T00:00:00+00:00"},
        )
    write_json(
        workspace.releases / one / "evaluation.json", {"models": {"funnel": {"ndcg@10": 0.125}}}
    )
    (workspace.releases / three / "evaluation.json").write_text('{"models": [1]}')
    damage(workspace, two, "truncated codec.json")
    found = {info.id: info for info in releases(workspace)}
    assert list(found) == [two, three, one]
    assert [info.current for info in found.values()] == [False, True, False]
    assert [info.ndcg for info in found.values()] == [None, None, 0.125]
    assert found[two].problem == "codec.json is not what was released (its hash differs)"
    assert found[one].problem is found[three].problem is None and found[one].data_version == "d1"
    damage(workspace, two, "empty manifest")
    assert releases(workspace)[0].created_at == ""


class TestCommand:
    def run(self, workspace: Workspace, *words: str) -> Result:
        return CliRunner().invoke(command, [*words, "--home", str(workspace.root)])

    def test_without_a_word_it_packs_and_promotes(self, workspace: Workspace) -> None:
        assert self.run(workspace).exit_code == 0
        assert current(workspace) == releases(workspace)[0].id

    def test_the_rest(self, workspace: Workspace, make: Callable[[int], str]) -> None:
        one, two = make(1), make(2)
        assert self.run(workspace, "promote", one[:8]).exit_code == 0 and current(workspace) == one
        assert self.run(workspace, "rollback").exit_code == 0 and current(workspace) == two
        listed = json.loads(self.run(workspace, "list").stdout.splitlines()[-1])
        assert {entry["id"]: entry["current"] for entry in listed} == {one: False, two: True}
        assert (
            self.run(workspace, "verify").exit_code
            == self.run(workspace, "verify", one).exit_code
            == 0
        )

    def test_the_folder_may_come_before_the_word(
        self, workspace: Workspace, make: Callable[[int], str]
    ) -> None:
        one = make(1)
        make(2)
        done = CliRunner().invoke(command, ["--home", str(workspace.root), "promote", one])
        assert done.exit_code == 0 and current(workspace) == one

    def test_refusals_come_out_as_they_are(
        self, workspace: Workspace, make: Callable[[int], str]
    ) -> None:
        one = make(1)
        make(2)
        damage(workspace, one)
        assert isinstance(self.run(workspace, "promote", one).exception, BadRelease)
        assert isinstance(self.run(workspace, "verify", one).exception, BadRelease)
        assert isinstance(self.run(workspace, "promote", "nothing").exception, UnknownRelease)

    def test_rules_belong_to_a_new_release(self, workspace: Workspace) -> None:
        done = CliRunner().invoke(
            command, ["--filters", "x.toml", "list", "--home", str(workspace.root)]
        )
        assert done.exit_code == 2


def test_a_release_of_equal_content_elsewhere_has_the_same_id(
    workspace: Workspace, make: Callable[[int], str]
) -> None:
    one = make(1)
    twin = shutil.copytree(workspace.releases / one, workspace.releases / "twin")
    assert write_manifest(twin, PROVENANCE) == one
    assert promote(workspace, "twin").name == current(workspace) == "twin"


def test_a_workspace_may_be_reached_by_a_link(
    workspace: Workspace, make: Callable[[int], str], tmp_path: Path
) -> None:
    one, two = make(1), make(2)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "link").symlink_to(workspace.root)
    other = Workspace(tmp_path / "deep" / "er" / "link")
    make_release(other)
    promote(other, one)
    assert rollback(other) == current_release(workspace) and current(workspace) not in (one, two)
    promote(other, two)
    promote(other, two)
    assert current(workspace) == two and len(history(workspace)) == 6
