"""``dataset.toml``: the description of a data set, checked before anything is read.

The same object, stored as JSON beside the ingested tables, tells every later stage which event
types, attributes and columns there are.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails

from feature_repo import columns as c
from feature_repo.errors import FunnelError
from feature_repo.own_names import EVENT_NAMES, as_name, is_taken, ranker_clashes

AttributeKind = Literal["categorical", "multi_categorical", "numeric", "text"]
ContextKind = Literal["categorical", "numeric", "text"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=60)]


class SpecError(FunnelError, ValueError):
    """A dataset spec, or the data it names, cannot be used; the message says what to change."""

    exit_code = 2


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    added: ClassVar[frozenset[str]] = frozenset()
    """Fields that earlier versions lack: left out at their default, so that hashes stay."""

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        for name in self.added:
            if values.get(name) == type(self).model_fields[name].default:
                values.pop(name, None)
        return values


class Table(_Strict):
    """Where a table lies and how its files are written.

    ``path`` is a file, a folder or a glob, relative to the data folder. ``columns`` names the
    columns of files that have no header line. A ``separator`` of one ASCII character allows quoted
    values; with any other, a quotation mark is a character like all others. ``quoting`` says how a
    quotation mark within a value is written: doubled (RFC 4180), behind a backslash, or plainly,
    because values are never quoted (``none``); ``auto`` takes the one of the first two that reads
    more lines.
    ``decimal`` is the mark before the fraction of the numbers in CSV files.
    """

    added: ClassVar[frozenset[str]] = frozenset({"quoting", "decimal"})

    path: Annotated[str, Field(min_length=1)]
    format: Literal["csv", "parquet", "jsonl"] | None = None
    separator: str = ","
    encoding: str = "utf-8"
    columns: Annotated[list[str], Field(min_length=1)] | None = None
    list_separator: Annotated[str, Field(min_length=1)] = "|"
    quoting: Literal["auto", "double", "backslash", "none"] = "auto"
    decimal: Literal[".", ","] = "."

    @model_validator(mode="after")
    def _files_can_be_split(self) -> Self:
        if not self.separator or set(self.separator) & set('"\r\n\0'):
            raise ValueError(f"separator = {self.separator!r} cannot separate columns")
        try:
            "".encode(self.encoding)
        except LookupError:
            raise ValueError(
                f"encoding = '{self.encoding}' is not a text encoding that Python knows"
            ) from None
        if self.columns and len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns names one column twice: {self.columns}")
        return self

    def find(self, folder: Path) -> list[Path]:
        """Return the table's files below the data folder, sorted by path, without hidden ones.

        Raises:
            SpecError: ``path`` is no valid pattern.

        """
        direct = folder / self.path
        if direct.is_file():
            return [direct]
        base = (
            direct
            if direct.is_dir()
            else Path(direct.anchor)
            if Path(self.path).is_absolute()
            else folder
        )
        pattern = (
            "**/*" if direct.is_dir() else str(Path(self.path).relative_to(Path(self.path).anchor))
        )
        try:
            found = [path for path in base.glob(pattern) if path.is_file()]
        except ValueError as error:
            raise SpecError(f"path = '{self.path}' is not a pattern of files: {error}") from None
        # Spark and notebooks keep unfinished and old copies in folders like _temporary and
        # .ipynb_checkpoints.
        hidden = (".", "_")
        return sorted(
            p for p in found if not any(part.startswith(hidden) for part in _below(p, base).parts)
        )

    def file_format(self, file: Path) -> str:
        """Return the format of one file: the declared one, else what its ending says."""
        if self.format:
            return self.format
        ending = file.name.removesuffix(".gz").rsplit(".", 1)[-1].lower()
        known = {"csv": "csv", "tsv": "csv", "dat": "csv", "txt": "csv", "parquet": "parquet"}
        known |= {"jsonl": "jsonl", "ndjson": "jsonl", "json": "jsonl"}
        if ending not in known:
            raise SpecError(
                f"{file.name}: unknown file ending; set format = 'csv', 'parquet' or 'jsonl'"
            )
        return known[ending]


def _below(path: Path, base: Path) -> Path:
    return path.relative_to(base) if path.is_relative_to(base) else Path(path.name)


class EventType(_Strict):
    """One kind of event: how much it counts, and whether it says that the user wanted the item.

    Without a type column the type follows from the value: the type with the highest
    ``min_value`` that the value reaches.
    """

    weight: float = Field(default=1.0, ge=0, le=1e6)
    positive: bool = False
    min_value: float | None = None

    @model_validator(mode="after")
    def _positive_counts(self) -> Self:
        if self.positive and not self.weight:
            raise ValueError("a positive event type needs a weight above 0")
        return self


class Events(Table):
    """The event log: who did what to which item, when.

    ``context``: further columns, which say where an event happened, such as its page or device.
    ``rename`` has the file's column of those that are called otherwise there.
    """

    added: ClassVar[frozenset[str]] = Table.added | {"context", "rename"}

    user: str
    item: str
    timestamp: str
    timestamp_unit: Literal["auto", "s", "ms", "us", "iso"] = "auto"
    type: str | None = None
    value: str | None = None
    id: str | None = None
    rename_types: dict[str, Name] = {}
    types: dict[Name, EventType] = {"interaction": EventType(positive=True)}
    context: dict[Name, ContextKind] = {}
    rename: dict[Name, str] = {}

    def source_column(self, field: str) -> str:
        """Return the column of the file that holds a field of the context."""
        return self.rename.get(field, field)

    @model_validator(mode="after")
    def _context_exists(self) -> Self:
        unknown = set(self.rename) - set(self.context)
        if unknown:
            raise ValueError(f"[events.rename]: {sorted(unknown)} not among [events.context]")
        return self

    @model_validator(mode="after")
    def _types_make_sense(self) -> Self:
        if not any(t.positive for t in self.types.values()):
            raise ValueError("[events.types]: at least one type needs positive = true")
        thresholds = [t.min_value for t in self.types.values() if t.min_value is not None]
        if self.type is None and len(self.types) > 1:
            if self.value is None:
                raise ValueError(
                    "[events]: several types need a 'type' column, or a 'value' column "
                    "and min_value"
                )
            if len(thresholds) < len(self.types):
                raise ValueError(
                    "[events.types]: without a 'type' column every type needs min_value"
                )
        if thresholds and (self.type is not None or self.value is None):
            raise ValueError(
                "[events.types]: min_value needs a 'value' column and no 'type' column"
            )
        if len(set(thresholds)) < len(thresholds):
            raise ValueError("[events.types]: two types have the same min_value")
        if self.rename_types and self.type is None:
            raise ValueError("[events.rename_types]: there is no 'type' column")
        unknown = set(self.rename_types.values()) - set(self.types)
        if unknown:
            raise ValueError(f"[events.rename_types]: {sorted(unknown)} not among [events.types]")
        return self


class Users(Table):
    """The user table; ``optional`` allows it to be absent.

    ``valid_from`` names a column of times: a user may then have several rows, each valid from its
    time until the next.
    """

    added: ClassVar[frozenset[str]] = Table.added | {"valid_from"}

    key: str
    attributes: dict[Name, AttributeKind] = {}
    rename: dict[Name, str] = {}
    optional: bool = False
    valid_from: str | None = None

    @model_validator(mode="after")
    def _attributes_exist(self) -> Self:
        unknown = set(self.rename) - set(self.attributes)
        if unknown:
            raise ValueError(f"rename: {sorted(unknown)} not among the attributes")
        if self.valid_from is not None and c.VALID_FROM in self.attributes:
            raise ValueError(
                f"valid_from: no attribute may have the name '{c.VALID_FROM}' as well; choose "
                "another, with rename"
            )
        return self

    def source_column(self, attribute: str) -> str:
        """Return the column of the file that holds an attribute."""
        return self.rename.get(attribute, attribute)


class Items(Users):
    """The item table. ``category`` names the attribute that affinities and quotas go by.

    The table is the catalogue: an item that only the log knows is not recommended, unless
    ``recommend_unlisted`` is set.
    """

    added: ClassVar[frozenset[str]] = Users.added | {"recommend_unlisted"}

    title: Name | None = None
    category: Name | None = None
    available_from: str | None = None
    available_until: str | None = None
    recommend_unlisted: bool = False

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        for field in ("title", "category"):
            name = getattr(self, field)
            if name is not None and name not in self.attributes:
                raise ValueError(f"[items] {field} = '{name}' is not among [items.attributes]")
        if self.category and self.attributes[self.category] not in (
            "categorical",
            "multi_categorical",
        ):
            raise ValueError(
                f"[items] category = '{self.category}' must be categorical or multi_categorical"
            )
        return self


class DatasetSpec(_Strict):
    """A whole ``dataset.toml``.

    ``features`` is the path of a ``features.py`` with feature definitions: in the file relative to
    its folder, once loaded absolute.
    """

    added: ClassVar[frozenset[str]] = frozenset({"features"})

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=60)]
    events: Events
    users: Users | None = None
    items: Items | None = None
    features: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        attributes = {*self.user_attributes, *self.item_attributes}
        types = self.event_types
        used = {name for name in attributes if is_taken(name, types)}
        used |= {*ranker_clashes(types, self.user_attributes, self.item_attributes)}
        others = attributes | EVENT_NAMES | {c.DAY, c.ITEM_CATEGORIES}
        in_context = {name for name in self.context if name in others or is_taken(name, types)}
        if in_context:
            raise ValueError(
                f"[events.context] {sorted(in_context)}: another column has the name; choose "
                "another, with [events.rename]"
            )
        if used:
            raise ValueError(
                f"attribute {sorted(used)}: the name is Funnel's own; choose another, with rename"
            )
        return self

    @property
    def event_types(self) -> list[str]:
        """Event type names in their declared order."""
        return list(self.events.types)

    def event_type(self, word: str) -> str | None:
        """Return the event type that a word of the log means, None if it means none.

        Case and outer blanks do not matter where the word is no type as it stands.
        """
        if word in self.events.rename_types:
            return self.events.rename_types[word]
        if word in self.events.types:
            return word
        known = {name: name for name in self.events.types} | self.events.rename_types
        meant = {kind for name, kind in known.items() if name.casefold() == word.strip().casefold()}
        return meant.pop() if len(meant) == 1 else None

    @property
    def positive_types(self) -> list[str]:
        """Names of the event types that say the user wanted the item."""
        return [name for name, t in self.events.types.items() if t.positive]

    @property
    def has_value(self) -> bool:
        """Whether events carry a number."""
        return self.events.value is not None

    @property
    def context(self) -> dict[str, ContextKind]:
        """Fields of the context of an event or a request, and their kinds."""
        return dict(self.events.context)

    @property
    def user_attributes(self) -> dict[str, AttributeKind]:
        """User attribute names and kinds."""
        return dict(self.users.attributes) if self.users else {}

    @property
    def item_attributes(self) -> dict[str, AttributeKind]:
        """Item attribute names and kinds."""
        return dict(self.items.attributes) if self.items else {}

    @property
    def dated_item_attributes(self) -> tuple[str, ...]:
        """Item attributes that are read as of a time, since the table keeps their history.

        All but free text, which no ranker and no filter reads; none without ``valid_from``.
        """
        if self.items is None or self.items.valid_from is None:
            return ()
        return tuple(name for name, kind in self.items.attributes.items() if kind != "text")

    @property
    def category(self) -> str | None:
        """The item attribute that affinities and quotas go by, if there is one."""
        return self.items.category if self.items else None

    def without_optional(self, folder: Path) -> DatasetSpec:
        """Return the spec without the optional tables that are not in ``folder``."""
        gone: dict[str, None] = {}
        for field in ("users", "items"):
            table = getattr(self, field)
            if table is not None and table.optional and not table.find(folder):
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
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not valid TOML: {error}") from None
    try:
        spec = DatasetSpec.model_validate(raw)
    except ValidationError as error:
        problems = "; ".join(_sentence(problem) for problem in error.errors())
        raise SpecError(f"{path}: {problems}") from None
    if spec.features is None:
        return spec
    # Absolute, because later stages do not know where the dataset.toml lies.
    return spec.model_copy(update={"features": str((path.parent / spec.features).resolve())})


def _sentence(problem: ErrorDetails) -> str:
    """Return where a spec is wrong, and what to write instead."""
    location = [str(part) for part in problem["loc"] if part != "[key]"]
    field = ".".join(location) or "spec"
    if problem["type"] != "string_pattern_mismatch":
        return f"{field}: {re.sub('^Value error, ', '', problem['msg'])}"
    given = problem["input"]
    allowed = "small letters, digits and '_', beginning with a letter"
    if "attributes" in location:
        table = location[0]
        return (
            f"[{table}.attributes]: {given!r} is not a feature name ({allowed}). Choose a name, "
            f"and give the file's column in [{table}.rename], for example "
            f"{as_name(given)} = {json.dumps(given, ensure_ascii=False)}"
        )
    if "types" in location:
        return (
            f"[events.types]: {given!r} is not an event type ({allowed}). Choose a name, and map "
            f"the file's word to it in [events.rename_types], for example "
            f"{json.dumps(given, ensure_ascii=False)} = {as_name(given)!r}"
        )
    return f"{field}: {given!r} does not match {problem['ctx']['pattern']}"
