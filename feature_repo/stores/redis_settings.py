"""``FUNNEL_REDIS``: address and credentials of the cluster profile's Redis.

The form is Feast's, ``host:port,name=value,...``, for example
``redis:6380,ssl=true,username=funnel,password=...``. A value that holds a comma or begins with a
quotation mark is written as a JSON string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import quote, urlencode

from feature_repo.errors import FunnelError
from feature_repo.settings import read_settings

VARIABLE = "FUNNEL_REDIS"
_DEFAULT_PORT = "6379"
_ADDRESS = re.compile(r"([\w.-]+)(?::(\d{1,5}))?")
_OPTION = re.compile(r',(\w+)=("(?:[^"\\]|\\.)*"(?=,|$)|[^,]*)')
_LITERAL = re.compile(r"true|false|\d+(\.\d+)?")
_CREDENTIALS = {"username", "password", "ssl_password"}
_TLS = {
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_keyfile",
}
_NETWORK = {"socket_timeout", "socket_connect_timeout", "socket_keepalive", "health_check_interval"}
_KNOWN = (
    _CREDENTIALS
    | _TLS
    | _NETWORK
    | {"db", "ssl", "client_name", "max_connections", "retry_on_timeout"}
)


class BadRedisSettings(FunnelError):
    """``FUNNEL_REDIS`` is missing or wrong; the message never repeats it: it may be a password."""


class Secret(str):
    """Text that does not show when an object that holds it is printed."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'...'"


@dataclass(frozen=True)
class RedisSettings:
    """One server; ``options`` are redis-py's, as text."""

    host: str
    port: str
    tls: bool = False
    options: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def from_environment(cls) -> Self:
        """Return what ``FUNNEL_REDIS`` says.

        Raises:
            BadRedisSettings: it is not set, or not of the form that this module describes.

        """
        secret = read_settings().redis
        text = secret.get_secret_value().strip() if secret else ""
        if not text:
            raise BadRedisSettings(
                f"the cluster profile needs {VARIABLE} in the environment: host:port,password=..."
            )
        address = _ADDRESS.match(text)
        if not address or text[address.end() :][:1] not in ("", ","):
            raise BadRedisSettings(
                f"{VARIABLE} begins with host:port, without a scheme, and names one server"
            )
        options = dict(_options(text, address.end()))
        tls = _flag(options.pop("ssl", "false"))
        if not tls and (lost := sorted(_TLS & options.keys())):
            raise BadRedisSettings(
                f"{VARIABLE} has {', '.join(lost)} without ssl=true: nothing would be encrypted"
            )
        return cls(address[1], address[2] or _DEFAULT_PORT, tls, options)

    def url(self) -> str:
        """Return redis-py's URL, credentials included."""
        # As part of the query they would be unquoted twice, which changes a password with a '%' in
        # it.
        user, password = (
            quote(self.options.get(name, ""), safe="") for name in ("username", "password")
        )
        login = f"{user}:{password}@" if user or password else ""
        rest = {
            name: quote(v, safe="")
            for name, v in self.options.items()
            if name not in ("username", "password")
        }
        query = f"?{urlencode(rest)}" if rest else ""
        return Secret(f"redis{'s' if self.tls else ''}://{login}{self.host}:{self.port}{query}")

    def connection_string(self, timeout_s: float) -> str:
        """Return Feast's connection string with credentials; ``timeout_s`` is the default."""
        options = {
            "socket_timeout": str(timeout_s),
            "socket_connect_timeout": str(timeout_s),
            **self.options,
            **({"ssl": "true"} if self.tls else {}),
        }
        parts = [f"{name}={_for_feast(name, value)}" for name, value in options.items()]
        return Secret(",".join([f"{self.host}:{self.port}", *parts]))


def _options(text: str, start: int) -> Iterator[tuple[str, str]]:
    number = 0
    while start < len(text):
        number += 1
        option = _OPTION.match(text, start)
        if not option or option[1] not in _KNOWN:
            raise BadRedisSettings(
                f"{VARIABLE}: setting {number} is not a name=value that is known here; "
                "write a value with a comma in it, such as a password, as a JSON string: "
                'password="..."'
            )
        yield option[1], _plain(option[2])
        start = option.end()


def _plain(value: str) -> str:
    """Return a value without JSON quotes; like Feast, keep text that is not valid JSON."""
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except json.JSONDecodeError:
        return value


def _flag(value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise BadRedisSettings(f"{VARIABLE}: ssl is 'true' or 'false'")
    return value.lower() == "true"


def _for_feast(name: str, value: str) -> str:
    # Feast splits at commas and reads values as JSON where it can: the password 1.10 would become
    # the number 1.1.
    if name not in _CREDENTIALS and _LITERAL.fullmatch(value):
        return value
    return json.dumps(value).replace(",", "\\u002c")
