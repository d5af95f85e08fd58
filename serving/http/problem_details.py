"""The one path from an error to its HTTP answer: problem details (RFC 9457)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from feature_repo.events.context import BadContext
from serving.answers import UnknownItem
from serving.api.problems import MEDIA_TYPE, printable, problem_body
from serving.engine import Unwanted
from serving.event_log.port import LogFull
from serving.http.executors import Overloaded
from serving.live_items.added import BadItem, NoSpareRow, ReleasedItem
from serving.live_items.journal import JournalFailed
from serving.observability.logs import request_id
from serving.online.features import OnlineStoreUnavailable
from serving.recommender.filters import UnknownAttribute

_SHOWN_ERRORS = 10
_SHOWN_TEXT = 200
_log = logging.getLogger(__name__)


class RequestRefused(Exception):  # noqa: N818 - an answer, not a fault
    """A middleware refuses a request; the error carries the whole answer."""

    def __init__(
        self, status: int, title: str, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(title)
        self.status = status
        self.title = title
        self.detail = detail
        self.headers = headers


class ProblemResponse(Response):
    """An answer with problem details; it may be sent more than once."""

    media_type = MEDIA_TYPE

    def __init__(
        self, status: int, title: str, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(problem_body(status, title, detail), status, headers)


class ProblemDetailsMiddleware:
    """Answers every error of the layers inside it with problem details.

    An answer that has begun cannot be replaced: its error is raised on, and the server closes the
    connection.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        started = False

        async def noting_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, noting_send)
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            await problem_response(error)(scope, receive, send)


async def handle_framework_error(_: Request, error: Exception) -> Response:
    """Replace FastAPI's own answers, to routes that do not exist and to parameters it checks."""
    return problem_response(error)


def problem_response(error: Exception) -> ProblemResponse:
    """Return the answer to an error; one that is nobody's fault but the server's is logged."""
    match error:
        case RequestRefused():
            return ProblemResponse(error.status, error.title, error.detail, error.headers)
        case RequestValidationError():
            return _invalid(error.errors())
        case ValidationError():
            return _invalid(error.errors(include_url=False, include_input=False))
        case HTTPException():
            title = str(error.detail).lower()
            detail = "see /openapi.json for what there is"
            return ProblemResponse(error.status_code, title, detail, error.headers)
        case UnknownAttribute():
            return ProblemResponse(422, "the filters cannot be applied", str(error))
        case BadContext():
            return ProblemResponse(422, "the context does not fit the data set", str(error))
        case UnknownItem():
            return ProblemResponse(404, "no such item", f"this release has no item '{error}'")
        case BadItem():
            return ProblemResponse(422, "the item cannot be added", str(error))
        case ReleasedItem():
            detail = (
                f"the release has '{error}' itself; its attributes change with the next release"
            )
            return ProblemResponse(409, "the item is one of the release", detail)
        case NoSpareRow():
            detail = (
                f"there is place for {error} added items in a release; make a new one, "
                "which has them itself"
            )
            return ProblemResponse(507, "no place for another item", detail)
        case Overloaded():
            return overloaded()
        case Unwanted():
            return ProblemResponse(499, "the client has gone", "nobody reads this")
        case JournalFailed():
            return ProblemResponse(507, "the change is not durable", f"send it again ({error})")
        case LogFull():
            detail = f"no event of the request was taken; send it again ({error})"
            return ProblemResponse(429, "the event log is full", detail, {"Retry-After": "5"})
        case OnlineStoreUnavailable():
            detail = f"try again soon ({error})"
            headers = {"Retry-After": "1"}
            return ProblemResponse(503, "the online store does not answer", detail, headers)
    return _server_error(error)


def overloaded() -> ProblemResponse:
    """Return the answer to a request that is refused because too many wait already."""
    return ProblemResponse(
        503,
        "too many requests at once",
        "nothing was done for this one; send it again",
        {"Retry-After": "1"},
    )


def _invalid(errors: Sequence[Any]) -> ProblemResponse:
    """Return the answer to a request that does not fit: the first errors, and how many more."""
    details = [
        f"{'.'.join(_short(part) for part in e['loc']) or 'body'}: {_short(e['msg'])}"
        for e in errors[:_SHOWN_ERRORS]
    ]
    if len(errors) > _SHOWN_ERRORS:
        details.append(f"and {len(errors) - _SHOWN_ERRORS} more errors")
    return ProblemResponse(422, "the request does not fit its schema", "; ".join(details))


def _short(part: object) -> str:
    """Return what a client sent, in an answer's size and characters."""
    text = str(part)
    return printable(text if len(text) <= _SHOWN_TEXT else f"{text[:_SHOWN_TEXT]}...")


def _server_error(error: Exception) -> ProblemResponse:
    """Log an error and return an answer that says nothing of it."""
    _log.error("a request failed", exc_info=error)
    name = request_id.get()
    detail = "its log says why" + (f", under the request id {name}" if name else "")
    return ProblemResponse(500, "the server failed", detail)
