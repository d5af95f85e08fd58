import json
from dataclasses import replace

import numpy as np
import pytest

from ranking.data import spaced_rows
from ranking.row_schema import RowSchema
from tests.support.planted_rows import SCHEMA, planted


def test_schema_survives_json() -> None:
    assert RowSchema.from_dict(json.loads(json.dumps(SCHEMA.to_dict()))) == SCHEMA


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"numeric": ()}, "at least one numeric column"),
        ({"heads": (), "head_weights": ()}, "one head"),
        ({"categorical": ("noise", "device")}, "have the same name"),
        ({"cardinalities": (6,)}, "differ in number"),
        ({"cardinalities": (6, 0)}, "at least 1"),
        ({"head_weights": (1.0, float("nan"))}, "finite"),
    ],
)
def test_schema_refuses_what_does_not_fit(change: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(SCHEMA, **change)


def test_codes_out_of_range_become_unknown() -> None:
    codes = np.array([[5, 3], [6, -1], [0, 4]], dtype=np.int32)
    assert SCHEMA.known_codes(codes).tolist() == [[5, 3], [0, 0], [0, 0]]


def test_score_is_the_weighted_sum() -> None:
    assert SCHEMA.score([[0.5, 0.25], [0.0, 1.0]]).tolist() == [1.25, 3.0]


def test_check_refuses_bad_rows() -> None:
    good = planted(0, requests=3)
    good.check(SCHEMA)
    with pytest.raises(ValueError, match="sorted"):
        replace(good, request=good.request[::-1]).check(SCHEMA)
    with pytest.raises(ValueError, match="0 or 1"):
        replace(good, labels=good.labels + 0.5).check(SCHEMA)
    with pytest.raises(ValueError, match="columns"):
        replace(good, numeric=good.numeric[:, :2]).check(SCHEMA)
    with pytest.raises(ValueError, match="0 request"):
        good.take(np.arange(0)).check(SCHEMA)


def test_digest_sees_every_part() -> None:
    data = planted(0, requests=3)
    assert data.digest() == planted(0, requests=3).digest()
    changed = replace(data, request=data.request + 1)
    assert changed.digest() != data.digest()


def test_spread_keeps_both_ends_and_order() -> None:
    assert spaced_rows(10, 4).tolist() == [0, 3, 6, 9]
    assert len(planted(0, requests=5).sample(7)) == 7
    assert planted(0, requests=3).group_sizes().tolist() == [20, 20, 20]
