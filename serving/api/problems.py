"""Problem details (RFC 9457): the body of every error that the API answers with."""

from __future__ import annotations

import orjson
from typing_extensions import TypedDict

MEDIA_TYPE = "application/problem+json"


class Problem(TypedDict):
    """The body of every answer with a status of 400 or more."""

    type: str
    title: str
    status: int
    detail: str


def printable(text: str) -> str:
    """Return a text in characters that an answer may hold; a client may send half of one."""
    return text.encode("utf-8", "backslashreplace").decode()


def problem_body(status: int, title: str, detail: str) -> bytes:
    """Return problem details as JSON."""
    problem = Problem(type="about:blank", title=title, status=status, detail=detail)
    return orjson.dumps(problem)
