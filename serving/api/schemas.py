"""Request and response bodies of the HTTP API; ``/openapi.json`` describes them by these names."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    WithJsonSchema,
    field_validator,
    with_config,
)
from typing_extensions import TypedDict

from feature_repo.cell_values import MAX_NUMBER, stands_for_nothing
from feature_repo.event_time import (
    EARLIEST_S,
    FORMS,
    MILLISECONDS_FROM,
    UnreadableTime,
    read_end,
    read_time,
)
from serving.recommender.filters import AttributeRule

Id = Annotated[str, Field(min_length=1, max_length=256)]


MAX_BATCH_ITEMS = 20_000
"""Items that the requests of a batch may ask for in all."""

MAX_EXPLAINED = 50
"""Requests of a batch that may ask for explanations."""


def known_id(text: str) -> str:
    """Return an id without outer blanks, as files are read.

    Raises:
        ValueError: it is blank, or a word that stands for a missing id.

    """
    if stands_for_nothing(text):
        raise ValueError(f"{text!r} stands for a missing id")
    return text.strip()


EntityId = Annotated[Id, AfterValidator(known_id)]
"""The id of a user or item, as files are read: no blank, and no word such as ``undefined``."""


Context = dict[str, StrictStr | StrictInt | StrictFloat | None]
"""Fields of a context by name; null is as if it were not there."""


def _example(**fields: Any) -> ConfigDict:
    """Return the configuration of a model with an example, which works on the built-in world."""
    return ConfigDict(json_schema_extra={"examples": [fields]})


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RecommendationRequest(_Strict):
    """Who asks, for how many items, and which to leave out."""

    model_config = _example(user_id="u0042", k=10, exclude=["i0007"])

    user_id: Id = Field(description="Any id; a user without history gets popular items.")
    k: int = Field(default=20, ge=1, le=500, description="Number of items.")
    exclude: list[Id] = Field(
        default=[], max_length=10_000, description="Items that must not be recommended."
    )
    filters: dict[str, AttributeRule] = Field(
        default={}, max_length=20, description="Conditions on attributes of items, by name."
    )
    context: Context = Field(
        default={},
        max_length=50,
        description="Where the request comes from: fields of the data set's context, by name.",
    )
    explain: bool = Field(
        default=False, description="Explain each item's score; this takes several times as long."
    )


class RecommendationBatchRequest(_Strict):
    """Up to 1,000 requests, answered in their order.

    They may ask for up to 20,000 items in all, and up to 50 of them for explanations.
    """

    model_config = _example(requests=[{"user_id": "u0042", "k": 5}, {"user_id": "u0043", "k": 5}])

    requests: list[RecommendationRequest] = Field(min_length=1, max_length=1_000)

    @field_validator("requests")
    @classmethod
    def _within_limits(cls, requests: list[RecommendationRequest]) -> list[RecommendationRequest]:
        items = sum(request.k for request in requests)
        explained = sum(request.explain for request in requests)
        if items > MAX_BATCH_ITEMS:
            raise ValueError(
                f"the requests ask for {items} items in all; {MAX_BATCH_ITEMS} is the limit: "
                "lower 'k' or send fewer requests at once"
            )
        if explained > MAX_EXPLAINED:
            raise ValueError(
                f"{explained} requests ask for explanations; {MAX_EXPLAINED} is the limit: "
                "send fewer of them at once"
            )
        return requests


class FeatureContribution(TypedDict):
    """How much one feature adds to an item's score, in the ranker's own unit."""

    feature: str
    contribution: float


class Explanation(TypedDict):
    """Why an item was recommended; an item that was not ranked has its sources only."""

    sources: Annotated[
        dict[str, float | None], Field(description="Score of each source that proposed the item.")
    ]
    rank_score: NotRequired[float]
    probabilities: NotRequired[
        Annotated[dict[str, float], Field(description="Calibrated probability of each event type.")]
    ]
    features: NotRequired[
        Annotated[list[FeatureContribution], Field(description="Largest contributions first.")]
    ]


# Responses are plain dictionaries: making and checking models of twenty items takes longer than
# ranking them.
@with_config(_example(item_id="i0042", score=0.31, sources=["two_tower", "new"]))
class RecommendationItem(TypedDict):
    """One recommended item."""

    item_id: str
    score: float
    sources: Annotated[list[str], Field(description="Candidate sources that proposed the item.")]
    explain: NotRequired[Explanation]


@with_config(
    _example(
        request_id="9f0c3a52b8f84b1c8f1e6d7a5b4c3d2e",
        release="4c1f09a7d2be",
        items=[{"item_id": "i0042", "score": 0.31, "sources": ["two_tower", "new"]}],
        degraded=[],
    )
)
class RecommendationResponse(TypedDict):
    """The recommended items, best first."""

    request_id: Annotated[str, Field(description="Send it with events that this list caused.")]
    release: str
    items: list[RecommendationItem]
    degraded: Annotated[
        list[str], Field(description="Losses of quality, such as `online_store_unavailable`.")
    ]
    filtered: NotRequired[
        Annotated[
            dict[str, int], Field(description="Candidates that each rule removed (`explain`).")
        ]
    ]


class RecommendationBatchResponse(TypedDict):
    """One answer a request, in their order."""

    responses: list[RecommendationResponse]


class SimilarItemsResponse(TypedDict):
    """Items like another one, most similar first."""

    release: str
    items: list[RecommendationItem]


_TIME_SCHEMA = {
    "anyOf": [
        # Not all that is accepted: larger numbers are milliseconds and microseconds.
        {"type": "number", "minimum": EARLIEST_S, "maximum": MILLISECONDS_FROM / 100},
        # Not all that is accepted: no zones, and no days that some month does not have.
        {
            "type": "string",
            "pattern": (
                "^(19|20)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T[01][0-9]:[0-5][0-9]Z$"
            ),
        },
        {"type": "null"},
    ],
    "description": f"{FORMS[0].upper()}{FORMS[1:]}.",
}


def _begin(time: Any) -> Any:
    return None if time is None else read_time(time)


_Seconds = Annotated[float, Field(strict=True, allow_inf_nan=False)] | None
Timestamp = Annotated[_Seconds, BeforeValidator(_begin), WithJsonSchema(_TIME_SCHEMA)]
"""A time as ``feature_repo.event_time`` reads it; epoch seconds."""

EndTime = Annotated[_Seconds, BeforeValidator(read_end), WithJsonSchema(_TIME_SCHEMA)]
"""The same of an end; None for dates such as 9999-12-31, which mean that there is none."""


class ItemUpdate(_Strict):
    """An item that the release does not have, and when it is available: by default from now on."""

    attributes: dict[str, Any] = Field(
        max_length=1_000, description="Values of the data set's item attributes, by name."
    )
    available_from: Timestamp = None
    available_until: EndTime = None


class ItemChange(TypedDict):
    """Whether a request to add, remove or restore an item changed anything."""

    item_id: str
    changed: Annotated[bool, Field(description="False: the item was in this state already.")]


class UserFeaturesResponse(BaseModel):
    """The features of a user in the online store."""

    user_id: str
    known: bool = Field(description="False: the online store has no row of this user.")
    features: dict[str, Any]


def _event_time(time: Any) -> float:
    try:
        return read_time(time)
    except UnreadableTime as error:
        raise ValueError(f"{error}; at most 7 days ago") from None


_EVENT_TIME_SCHEMA = {
    "anyOf": [{"type": "number"}, {"type": "string"}],
    "description": f"{FORMS[0].upper()}{FORMS[1:]}; at most 7 days ago.",
}

EVENT_EXAMPLE: dict[str, Any] = {
    "event_id": "page-view-17",
    "user_id": "u0042",
    "item_id": "i0007",
    "type": "view",
    "timestamp": "2026-01-31T12:00:00Z",
}


class Event(_Strict):
    """One interaction of a user with an item."""

    model_config = _example(**EVENT_EXAMPLE)

    event_id: EntityId = Field(
        description="Unique over all users; a repeat within 24 hours counts as a duplicate."
    )
    user_id: EntityId
    item_id: EntityId
    type: str = Field(description="One of the data set's event types.")
    timestamp: Annotated[float, BeforeValidator(_event_time), WithJsonSchema(_EVENT_TIME_SCHEMA)]
    value: float | None = Field(
        default=None,
        allow_inf_nan=False,
        ge=-MAX_NUMBER,
        le=MAX_NUMBER,
        description="Rating, price or seconds of the event.",
    )
    request_id: Id | None = Field(
        default=None, description="`request_id` of the recommendation that led to the event."
    )
    context: Context | None = Field(
        default=None,
        max_length=50,
        description="Where it happened: fields of the data set's context, by name.",
    )


class EventBatch(_Strict):
    """Up to 1,000 events; each is checked by itself, as an ``Event``."""

    model_config = _example(events=[EVENT_EXAMPLE])

    events: list[dict[str, Any]] = Field(min_length=1, max_length=1_000)


class RejectedEvent(BaseModel):
    """An event that was not accepted, by its index in the batch."""

    index: int
    reason: str


class EventReceipt(BaseModel):
    """How many events of a batch were accepted, and why others were not."""

    model_config = _example(accepted=2, duplicates=0, duplicate_indices=[], rejected=[])

    accepted: int = Field(description="New events; they are durable now.")
    duplicates: int = Field(description="Events whose id was accepted before, from any user.")
    duplicate_indices: list[int] = Field(description="Their indices in the batch.")
    rejected: list[RejectedEvent]


class Liveness(TypedDict):
    """The process runs."""

    status: str


class StreamStatus(TypedDict):
    """The streaming job."""

    running: bool
    lag_s: Annotated[float | None, Field(description="Age of the oldest unprocessed event.")]


class Readiness(TypedDict):
    """Whether a server takes requests, and what its answers lack."""

    status: Annotated[str, Field(description="`ready`, `degraded`, `starting` or `stopping`.")]
    release: NotRequired[str]
    online_store: NotRequired[bool]
    lost: NotRequired[list[str]]
    items_age_s: NotRequired[float | None]
    stream: NotRequired[StreamStatus | None]
