"""How what goes wrong in a handler is answered: as problem details (RFC 9457)."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from serving.answers import UnknownItem
from serving.api.problems import MEDIA_TYPE, problem
from serving.event_log.redis_stream import LogFull
from serving.live_items.added import BadItem, NoSpareRow, ReleasedItem
from serving.online.features import OnlineStoreUnavailable
from serving.recommender.filters import UnknownAttribute


def _problem(status: int, title: str, detail: Any, retry_after_s: int | None = None) -> Response:
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return Response(problem(status, title, detail), status, headers, media_type=MEDIA_TYPE)


def _invalid(problems: Any) -> Response:
    told = (f"{'.'.join(map(str, p['loc'])) or 'body'}: {p['msg']}" for p in problems)
    return _problem(422, "the request does not fit its schema", "; ".join(told))


def add_errors(app: FastAPI) -> None:
    """Let an app answer every error in this way."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return _invalid(error.errors())

    @app.exception_handler(ValidationError)
    async def invalid_body(_: Request, error: ValidationError) -> Response:
        return _invalid(error.errors(include_url=False, include_input=False, include_context=False))

    @app.exception_handler(HTTPException)
    async def no_route(_: Request, error: HTTPException) -> Response:
        answer = _problem(
            error.status_code, str(error.detail).lower(), "see /openapi.json for what there is"
        )
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(UnknownAttribute)
    async def unknown_attribute(_: Request, error: UnknownAttribute) -> Response:
        return _problem(422, "the filters cannot be applied", str(error))

    @app.exception_handler(UnknownItem)
    async def unknown_item(_: Request, error: UnknownItem) -> Response:
        return _problem(404, "no such item", f"this release has no item '{error}'")

    @app.exception_handler(BadItem)
    async def bad_item(_: Request, error: BadItem) -> Response:
        return _problem(422, "the item cannot be added", str(error))

    @app.exception_handler(ReleasedItem)
    async def released_item(_: Request, error: ReleasedItem) -> Response:
        detail = f"the release has '{error}' itself; its attributes change with the next release"
        return _problem(409, "the item is one of the release", detail)

    @app.exception_handler(NoSpareRow)
    async def no_spare_row(_: Request, error: NoSpareRow) -> Response:
        detail = f"there is place for {error} added items in a release; make a new one, which has them itself"
        return _problem(507, "no place for another item", detail)

    @app.exception_handler(LogFull)
    async def log_full(_: Request, error: LogFull) -> Response:
        detail = f"no event of the request was taken; send it again ({error})"
        return _problem(429, "the event log is full", detail, retry_after_s=5)

    @app.exception_handler(OnlineStoreUnavailable)
    async def no_store(_: Request, error: OnlineStoreUnavailable) -> Response:
        return _problem(
            503, "the online store does not answer", f"try again soon ({error})", retry_after_s=1
        )
