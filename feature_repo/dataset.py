"""``dataset.toml``: the description of a data set, checked before anything is read.

The same object, stored as JSON beside the ingested tables, tells every later stage which event
types, attributes and columns there are.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

AttributeKind = Literal["categorical", "multi_categorical", "numeric", "text"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=60)]


class SpecError(ValueError):
    """A dataset spec, or the data it names, cannot be used; the message says what to change."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Table(_Strict):
    """Where a table lies and how its files are written.

    ``path`` is a file, a folder or a glob, relative to the data folder. ``columns`` names the
    columns of files that have no header line.
    """

    path: str
    format: Literal["csv", "parquet", "jsonl"] | None = None
    separator: str = ","
    encoding: str = "utf-8"
    columns: list[str] | None = None
    list_separator: str = "|"

    def file_format(self, file: Path) -> str:
        """Return the format of one file: the declared one, else what its ending says."""
        if self.format:
            return self.format
        ending = file.name.removesuffix(".gz").rsplit(".", 1)[-1].lower()
        known = {"csv": "csv", "tsv": "csv", "dat": "csv", "txt": "csv", "parquet": "parquet"}
        known |= {"jsonl": "jsonl", "ndjson": "jsonl", "json": "jsonl"}
        if ending not in known:
            raise SpecError(f"{file.name}: unknown file ending; set format = 'csv', 'parquet' or 'jsonl'")
        return known[ending]


class EventType(_Strict):
    """One kind of event: how much it counts, and whether it says that the user wanted the item.

    Without a type column the type follows from the value: the type with the highest
    ``min_value`` that the value reaches.
    """

    weight: float = Field(default=1.0, ge=0)
    positive: bool = False
    min_value: float | None = None


class Events(Table):
    """The event log: who did what to which item, when."""

    user: str
    item: str
    timestamp: str
    timestamp_unit: Literal["auto", "s", "ms", "us", "iso"] = "auto"
    type: str | None = None
    value: str | None = None
    id: str | None = None
    rename_types: dict[str, Name] = {}
    types: dict[Name, EventType] = {"interaction": EventType(positive=True)}

    @model_validator(mode="after")
    def _types_make_sense(self) -> Events:
        if not any(t.positive for t in self.types.values()):
            raise ValueError("[events.types]: at least one type needs positive = true")
        if self.type is None and len(self.types) > 1:
            if self.value is None:
                raise ValueError("[events]: several types need a 'type' column, or a 'value' column and min_value")
            if any(t.min_value is None for t in self.types.values()):
                raise ValueError("[events.types]: without a 'type' column every type needs min_value")
        unknown = set(self.rename_types.values()) - set(self.types)
        if unknown:
            raise ValueError(f"[events.rename_types]: {sorted(unknown)} not among [events.types]")
        return self


class Users(Table):
    """The user table; ``optional`` allows it to be absent."""

    key: str
    attributes: dict[Name, AttributeKind] = {}
    rename: dict[Name, str] = {}
    optional: bool = False

    def source_column(self, attribute: str) -> str:
        """Return the column of the file that holds an attribute."""
        return self.rename.get(attribute, attribute)


class Items(Users):
    """The item table. ``category`` names the attribute that affinities and quotas go by."""

    title: Name | None = None
    category: Name | None = None
    available_from: str | None = None
    available_until: str | None = None

    @model_validator(mode="after")
    def _names_exist(self) -> Items:
        for field in ("title", "category"):
            name = getattr(self, field)
            if name is not None and name not in self.attributes:
                raise ValueError(f"[items] {field} = '{name}' is not among [items.attributes]")
        if self.category and self.attributes[self.category] not in ("categorical", "multi_categorical"):
            raise ValueError(f"[items] category = '{self.category}' must be categorical or multi_categorical")
        return self


class DatasetSpec(_Strict):
    """A whole ``dataset.toml``."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=60)]
    events: Events
    users: Users | None = None
    items: Items | None = None

    @property
    def event_types(self) -> list[str]:
        """Event type names in their declared order."""
        return list(self.events.types)

    @property
    def positive_types(self) -> list[str]:
        """Names of the event types that say the user wanted the item."""
        return [name for name, t in self.events.types.items() if t.positive]

    @property
    def has_value(self) -> bool:
        """Whether events carry a number."""
        return self.events.value is not None

    @property
    def user_attributes(self) -> dict[str, AttributeKind]:
        """User attribute names and kinds."""
        return dict(self.users.attributes) if self.users else {}

    @property
    def item_attributes(self) -> dict[str, AttributeKind]:
        """Item attribute names and kinds."""
        return dict(self.items.attributes) if self.items else {}

    @property
    def category(self) -> str | None:
        """The item attribute that affinities and quotas go by, if there is one."""
        return self.items.category if self.items else None

    def without_optional(self, folder: Path) -> DatasetSpec:
        """Return the spec without the optional tables that are not in ``folder``."""
        gone: dict[str, None] = {}
        for field in ("users", "items"):
            table = getattr(self, field)
            if table is not None and table.optional and not list(folder.glob(table.path)):
                gone[field] = None
        return self.model_copy(update=gone)


def load_spec(path: Path) -> DatasetSpec:
    """Read and check a ``dataset.toml``.

    Raises:
        SpecError: the file is missing, is not TOML, or breaks the schema; the message names
            each field and what is wrong with it.

    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file; a dataset.toml describes the data") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not valid TOML: {error}") from None
    try:
        return DatasetSpec.model_validate(raw)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc']) or 'spec'}: "
            f"{re.sub('^Value error, ', '', problem['msg'])}"
            for problem in error.errors()
        )
        raise SpecError(f"{path}: {problems}") from None
