"""Requests and responses of the HTTP API."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, NotRequired

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from typing_extensions import TypedDict

from serving.recommender.filters import AttributeRule

Id = Annotated[str, Field(min_length=1, max_length=256)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RecommendationRequest(_Strict):
    """Who asks, for how many, and what to leave out."""

    user_id: Id
    k: int = Field(default=20, ge=1, le=500)
    exclude: list[Id] = Field(default=[], max_length=10_000)
    filters: dict[str, AttributeRule] = Field(default={}, max_length=20)
    explain: bool = False


class RecommendationBatchRequest(_Strict):
    """Up to 1,000 requests, answered in their order."""

    requests: list[RecommendationRequest] = Field(min_length=1, max_length=1_000)


# Responses are plain dictionaries: making and checking models of twenty items takes longer than
# ranking them.
class RecommendationItem(TypedDict):
    """One recommended item."""

    item_id: str
    score: float
    sources: list[str]
    explain: NotRequired[dict[str, Any]]


class RecommendationResponse(TypedDict):
    """The list, best first; ``degraded`` names each loss of quality, ``filtered`` what rules took out (explain)."""

    request_id: str
    release: str
    items: list[RecommendationItem]
    degraded: list[str]
    filtered: NotRequired[dict[str, int]]


class RecommendationBatchResponse(TypedDict):
    """One answer a request, in their order."""

    responses: list[RecommendationResponse]


class SimilarItemsResponse(TypedDict):
    """Items like another one, most similar first."""

    release: str
    items: list[RecommendationItem]


_MOMENT = {
    "anyOf": [
        {"type": "number"},
        # Not all that is accepted: no zones, and no days that some month does not have.
        {
            "type": "string",
            "pattern": "^[12][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T[01][0-9]:[0-5][0-9]Z$",
        },
        {"type": "null"},
    ]
}


def _epoch(moment: Any) -> Any:
    if not isinstance(moment, str):
        return moment
    found = datetime.fromisoformat(moment)
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


Moment = Annotated[
    Annotated[float, Field(strict=True, allow_inf_nan=False)] | None,
    BeforeValidator(_epoch),
    WithJsonSchema(_MOMENT),
]
"""Epoch seconds or ISO 8601 (without a zone: UTC); read as epoch seconds."""


class ItemUpdate(_Strict):
    """An item that the release does not have, and from when until when it can be had: by default from now on."""

    attributes: dict[str, Any] = Field(max_length=1_000)
    available_from: Moment = None
    available_until: Moment = None


class ItemChange(TypedDict):
    """An item that was added, removed or put back; ``changed`` is False if it was so already."""

    item_id: str
    changed: bool


class UserFeaturesResponse(BaseModel):
    """What the online store knows of a user."""

    user_id: str
    known: bool
    features: dict[str, Any]


class EventBatch(_Strict):
    """Up to 1,000 events; each is checked by itself."""

    events: list[dict[str, Any]] = Field(min_length=1, max_length=1_000)


class Event(_Strict):
    """One event. ``timestamp`` is epoch seconds or ISO 8601."""

    event_id: Id
    user_id: Id
    item_id: Id
    type: str
    timestamp: float | str
    value: float | None = Field(default=None, allow_inf_nan=False)
    request_id: Id | None = None


class RejectedEvent(BaseModel):
    """An event that was not accepted, by its place in the request."""

    index: int
    reason: str


class EventReceipt(BaseModel):
    """What became of the events."""

    accepted: int
    duplicates: int
    rejected: list[RejectedEvent]
