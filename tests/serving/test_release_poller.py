"""The pointer moves under a poller.

Good releases are taken, bad ones refused, and something is always served.
"""

from __future__ import annotations

import gc
import logging
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from feature_repo.files import link_atomically, read_json, write_json
from feature_repo.workspace import Workspace
from serving.releases.manifest import MANIFEST, BadRelease, write_manifest
from serving.releases.poller import ReleasePoller
from serving.releases.release import Release, load_release
from serving.releases.verify import check_release, features_read
from tests.support.damaged_release import DAMAGE
from tests.support.tiny_release import PROVENANCE, Tiny


class Bench:
    """A workspace with releases, a poller that is told when to look, and what was adopted."""

    def __init__(self, root: Path, tiny: Tiny, keep: int = 2) -> None:
        self.workspace = Workspace(root)
        self.tiny = tiny
        self.adopted: list[str] = []
        self.checked: list[str] = []
        self.served = load_release(self.add("first"))
        self.point("first")
        self.poller = ReleasePoller(
            self.workspace, self.served, self.adopt, check=self.check, every_s=0.01, keep=keep
        )

    def adopt(self, release: Release) -> None:
        self.served = release
        self.adopted.append(release.folder.name)

    def check(self, folder: Path) -> Release:
        self.checked.append(folder.name)
        return check_release(folder, lambda: features_read(self.tiny.codec))

    def add(self, name: str) -> Path:
        """Add a release with content of its own."""
        folder = shutil.copytree(self.tiny.folder, self.workspace.releases / name)
        write_json(
            folder / "filters.json", read_json(folder / "filters.json") | {"blocklist": [name]}
        )
        write_manifest(folder, PROVENANCE)
        return folder

    def add_bad(self, name: str, damage: str = "ranker that gives NaN") -> Path:
        folder = self.add(name)
        DAMAGE[damage](folder)
        return folder

    def point(self, name: str) -> None:
        link_atomically(self.workspace.releases / "current", self.workspace.releases / name)

    def poll(self, times: int = 3) -> None:
        for _ in range(times):
            self.poller.poll()

    def id(self, name: str) -> str:
        return str(read_json(self.workspace.releases / name / MANIFEST)["release"])


@pytest.fixture
def bench(tmp_path: Path, tiny: Tiny) -> Bench:
    return Bench(tmp_path, tiny)


def test_nothing_happens_while_the_pointer_stays(bench: Bench) -> None:
    bench.poll()
    assert (bench.adopted, bench.checked) == ([], [])
    first = bench.served.id
    assert bench.poller.status() == {
        "serving": first,
        "kept": [first],
        "refused": {},
        "refusals": 0,
    }


def test_a_promoted_release_is_taken_at_the_first_look(bench: Bench) -> None:
    first = bench.served.id
    bench.add("second")
    bench.point("second")
    bench.poll(1)
    assert bench.adopted == ["second"] and bench.served.id == bench.id("second")
    assert bench.poller.status()["kept"] == [first, bench.id("second")]
    bench.poll()
    assert bench.checked == ["second"]


def test_to_go_back_is_to_look_up(bench: Bench) -> None:
    before = bench.served
    bench.add("second")
    for name in ("second", "first", "second", "first"):
        bench.point(name)
        bench.poll(1)
    assert bench.served is before
    assert bench.adopted == ["second", "first", "second", "first"]
    assert bench.checked == ["second"]


@pytest.mark.parametrize(
    ("keep", "checked"), [(1, ["a", "b", "a", "first"]), (2, ["a", "b", "first"]), (3, ["a", "b"])]
)
def test_so_many_stay_loaded(tmp_path: Path, tiny: Tiny, keep: int, checked: list[str]) -> None:
    bench = Bench(tmp_path, tiny, keep)
    bench.add("a")
    bench.add("b")
    for name in ("a", "b", "a", "first"):
        bench.point(name)
        bench.poll(1)
    assert bench.checked == checked
    assert len(bench.poller.status()["kept"]) == keep


def test_the_others_are_let_go(bench: Bench) -> None:
    first = weakref.ref(bench.served.retrieval.vectors)
    for name in ("a", "b"):
        bench.add(name)
        bench.point(name)
        bench.poll(1)
    gc.collect()
    assert first() is None


def test_a_bad_release_is_refused_once_and_the_old_one_goes_on(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    first = bench.served
    bench.add_bad("bad")
    bench.point("bad")
    with caplog.at_level(logging.ERROR):
        bench.poll(5)
    status = bench.poller.status()
    assert bench.served is first and bench.adopted == [] and bench.checked == ["bad"]
    assert status["serving"] == first.id and status["refusals"] == 1
    assert "its ranker fails" in status["refused"]["bad"]
    (said,) = caplog.messages
    assert "release bad is refused" in said and first.id in said


def test_after_a_refusal_the_pointer_may_go_anywhere(bench: Bench) -> None:
    bench.add("second")
    bench.add_bad("bad", "truncated codec.json")
    for name in ("bad", "second", "bad", "first"):
        bench.point(name)
        bench.poll(1)
    assert bench.adopted == ["second", "first"]
    assert list(bench.poller.status()["refused"]) == ["bad"]


@pytest.mark.parametrize(
    "broken", ["the link is gone", "the link leads nowhere", "the link leads to itself"]
)
def test_a_broken_pointer_is_refused_and_put_right(bench: Bench, broken: str) -> None:
    first, link = bench.served, bench.workspace.releases / "current"
    link.unlink()
    if broken != "the link is gone":
        link.symlink_to("nowhere" if "nowhere" in broken else "current")
    bench.poll()
    assert bench.served is first and bench.poller.status()["refusals"] == 1
    link.unlink(missing_ok=True)
    bench.point("first")
    bench.poll(1)
    assert bench.served is first and bench.adopted == [] and bench.poller.status()["refusals"] == 1


def test_a_copy_under_way_is_taken_when_it_is_complete(bench: Bench) -> None:
    whole = bench.add("whole")
    shutil.move(whole, bench.workspace.root / "whole")
    target = bench.workspace.releases / "whole"
    bench.point("whole")
    bench.poll(1)
    files = sorted(path for path in (bench.workspace.root / "whole").rglob("*") if path.is_file())
    for path in files:
        assert bench.adopted == []
        copied = target / path.relative_to(bench.workspace.root / "whole")
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copied)  # with its old time, as a backup does
        bench.poll(1)
    bench.poll(1)
    assert bench.adopted == ["whole"] and bench.poller.status()["refused"] == {}
    assert len(bench.checked) < 5, "a copy that moves on is not hashed again and again"


def test_a_refused_release_is_tried_again_when_it_is_promoted_again(bench: Bench) -> None:
    bench.add_bad("bad")
    bench.point("bad")
    bench.poll()
    bench.point("bad")
    bench.poll()
    assert bench.checked == ["bad", "bad"] and bench.poller.status()["refusals"] == 2


def test_a_refused_release_is_tried_again_when_the_registry_has_changed(bench: Bench) -> None:
    bench.add_bad("bad")
    bench.point("bad")
    bench.poll()
    registry = bench.workspace.feast_registry
    registry.parent.mkdir()
    registry.write_bytes(b"materialized")
    bench.poll()
    assert bench.checked == ["bad", "bad"]


def test_a_manifest_of_the_release_being_served_deceives_nobody(bench: Bench) -> None:
    bad = bench.add_bad("bad", "truncated codec.json")
    shutil.copy(bench.workspace.releases / "first" / MANIFEST, bad / MANIFEST)
    bench.point("bad")
    bench.poll()
    assert bench.adopted == [] and "bad" in bench.poller.status()["refused"]


def test_an_equal_release_elsewhere_is_not_adopted_and_checked_once(bench: Bench) -> None:
    shutil.copytree(bench.workspace.releases / "first", bench.workspace.releases / "twin")
    bench.point("twin")
    bench.poll(4)
    assert (
        bench.adopted == [] and bench.checked == ["twin"] and bench.poller.status()["refusals"] == 0
    )


def test_what_cannot_be_adopted_is_refused(bench: Bench) -> None:
    def fail(_: Release) -> None:
        raise RuntimeError("no memory left")

    first = bench.served
    poller = ReleasePoller(bench.workspace, first, fail, check=bench.check)
    bench.add("second")
    bench.point("second")
    poller.poll()
    assert poller.status()["serving"] == first.id
    assert poller.status()["refused"] == {"second": "RuntimeError: no memory left"}


def test_the_default_check_asks_the_workspace_s_registry(bench: Bench) -> None:
    poller = ReleasePoller(bench.workspace, bench.served, bench.adopt)
    bench.add("second")
    bench.point("second")
    poller.poll()
    assert "run 'funnel materialize'" in poller.status()["refused"]["second"]


def test_refusals_are_forgotten_at_some_time(bench: Bench) -> None:
    for number in range(20):
        bench.add_bad(f"bad{number}", "nothing but the manifest")
        bench.point(f"bad{number}")
        bench.poll(1)
    assert list(bench.poller.status()["refused"]) == [f"bad{number}" for number in range(4, 20)]
    assert bench.poller.status()["refusals"] == 20


class TestRunning:
    """With its thread."""

    @pytest.fixture
    def running(self, bench: Bench) -> Iterator[Bench]:
        bench.poller.start()
        yield bench
        bench.poller.close()

    def wait(self, until: Callable[[], bool]) -> None:
        end = time.monotonic() + 20.0
        while not until():
            assert time.monotonic() < end
            time.sleep(0.005)

    def test_it_follows_the_pointer_until_it_is_closed(self, running: Bench) -> None:
        running.add("second")
        running.point("second")
        self.wait(lambda: running.adopted == ["second"])
        running.point("first")
        self.wait(lambda: running.adopted == ["second", "first"])
        running.poller.close()
        running.point("second")
        time.sleep(0.05)
        assert running.adopted == ["second", "first"]
        assert "release-poller" not in {thread.name for thread in threading.enumerate()}

    def test_nothing_ends_its_thread(self, running: Bench) -> None:
        for number, damage in enumerate(DAMAGE):
            if number % 8 == 0:
                running.add_bad(f"bad{number}", damage)
                running.point(f"bad{number}")
                self.wait(
                    lambda number=number: f"bad{number}" in running.poller.status()["refused"]
                )  # type: ignore[misc]
        shutil.rmtree(running.workspace.releases)
        self.wait(lambda: "current" in running.poller.status()["refused"])
        running.add("second")
        running.point("second")
        self.wait(lambda: running.adopted == ["second"])


def test_closing_before_starting_is_allowed(bench: Bench) -> None:
    bench.poller.close()


def test_the_reason_is_the_check_s_own(bench: Bench) -> None:
    bad = bench.add_bad("bad", "truncated user_tower.onnx")
    with pytest.raises(BadRelease) as refused:
        bench.check(bad)
    bench.point("bad")
    bench.poll()
    assert bench.poller.status()["refused"]["bad"] == str(refused.value)
