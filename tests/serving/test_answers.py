"""What an answer says of a user's features that are missing."""

from __future__ import annotations

import pytest

from feature_repo import columns as c
from serving.answers import _feature_losses
from serving.online.features import UserFeatures


@pytest.mark.parametrize(
    ("count", "losses"), [(0, []), (c.SEEN_LENGTH - 1, []), (c.SEEN_LENGTH, ["seen_truncated"])]
)
def test_a_user_who_has_seen_more_than_is_kept_is_told(count: int, losses: list[str]) -> None:
    seen = [f"i{number}" for number in range(count)]
    features = UserFeatures({c.seen("view"): [seen], c.seen("buy"): [None]}, known=True)
    assert _feature_losses(features, ["view", "buy", "hide"]) == losses


def test_every_loss_is_said() -> None:
    assert _feature_losses(None, ["view"]) == ["online_store_unavailable"]
    features = UserFeatures({}, known=False, stale=("user_profile",))
    assert _feature_losses(features, ["view"]) == ["stale_user_profile", "unknown_user"]
