"""Log lines, as text or JSON, each with the id of the request that it belongs to."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson

from feature_repo.settings import read_settings

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that is being answered."""

trace_id: ContextVar[str] = ContextVar("trace_id", default="")
"""Its trace, where there is tracing."""

_noted: ContextVar[dict[str, Any] | None] = ContextVar("noted", default=None)

_SILENT = logging.CRITICAL + 1


def begin_notes() -> dict[str, Any]:
    """Return where ``note`` writes to from now on in this context."""
    notes: dict[str, Any] = {}
    _noted.set(notes)
    return notes


def note(**facts: Any) -> None:
    """Add facts, but no user ids, to the access line of the current request."""
    notes = _noted.get()
    if notes is not None:
        notes.update(facts)


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields of a line; a record brings its own as ``extra={"facts": {...}}``."""
    facts = {
        "request_id": request_id.get(),
        "trace_id": trace_id.get(),
        **getattr(record, "facts", {}),
    }
    return {name: value for name, value in facts.items() if value != ""}


def _time(record: logging.LogRecord) -> str:
    return (
        datetime.fromtimestamp(record.created, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


class JsonFormatter(logging.Formatter):
    """One object a line; a traceback is one string of it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {"time": _time(record), "level": record.levelname, "logger": record.name}
        line |= {"message": record.getMessage(), **_facts(record)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # half a surrogate pair, say from a file name, is no UTF-8
            return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """For people: time, level, logger, message, facts."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback below it."""
        facts = "".join(f" {name}={value}" for name, value in _facts(record).items())
        line = f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()}{facts}"
        return line if not record.exc_info else f"{line}\n{self.formatException(record.exc_info)}"


def setup_logging(stream: TextIO | None = None) -> None:
    """Send all loggers' lines to one stream, by default standard error, as the environment says.

    ``FUNNEL_LOG``: ``json`` or ``text`` with a line for each request, ``off`` for nothing at all;
    unset: warnings and errors as text. ``FUNNEL_LOG_LEVEL``: the lowest level, if another.

    Raises:
        SettingsError: a variable has a value that is not allowed.

    """
    settings = read_settings()
    how = settings.log
    least = settings.log_level or ("INFO" if how else "WARNING")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if how == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=_SILENT if how == "off" else least, force=True)
    for name in ("uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate, logger.level = [], True, logging.NOTSET
    # Its lines hold paths, and paths hold user ids; ours hold the route instead.
    logging.getLogger("uvicorn.access").disabled = True
