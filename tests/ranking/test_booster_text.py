"""A LightGBM text that is not sound is found before LightGBM reads it.

It would take the process with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import lightgbm
import numpy as np
import pytest

from ranking.models.booster_text import check_booster

COLUMNS = 5


def train(rounds: int, labels: Callable[[np.ndarray], np.ndarray]) -> str:
    generator = np.random.default_rng(3)
    rows = generator.normal(size=(600, COLUMNS))
    rows[:, 4] = generator.integers(0, 40, 600)
    data = lightgbm.Dataset(rows, labels(rows), categorical_feature=[4], params={"verbosity": -1})
    parameters = {
        "objective": "binary",
        "verbosity": -1,
        "num_threads": 1,
        "min_data_in_leaf": 5,
        "min_data_per_group": 5,
    }
    return str(lightgbm.train(parameters, data, rounds).model_to_string())


@pytest.fixture(scope="module")
def text() -> str:
    return train(4, lambda rows: (rows[:, 0] + (rows[:, 4] % 3) > 1).astype(float))


def test_what_lightgbm_wrote_is_sound(text: str) -> None:
    assert re.search(r"\ncat_threshold=\d", text)
    check_booster(text, COLUMNS)


def test_trees_of_one_leaf_are_sound() -> None:
    stump = train(2, lambda rows: np.zeros(len(rows)))
    assert "num_leaves=1\n" in stump
    check_booster(stump, COLUMNS)


def test_a_text_that_was_cut_off_is_refused_wherever(text: str) -> None:
    for end in range(0, text.index("end of parameters"), 97):
        with pytest.raises(ValueError, match="booster"):
            check_booster(text[:end], COLUMNS)


def first(name: str, change: Callable[[list[str]], list[str]]) -> Callable[[str], str]:
    """Return what changes the values of a field in the first tree that has it.

    It keeps the text's length.
    """

    def damage(text: str) -> str:
        found = re.search(rf"\n{name}=(.+)", text)
        assert found
        values = " ".join(change(found[1].split(" ")))
        return text[: found.start(1)] + values.ljust(len(found[1])) + text[found.end(1) :]

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(first("left_child", lambda of: ["0", *of[1:]]), id="a node is its own child"),
        pytest.param(
            first("right_child", lambda of: [*of[:2], of[1], *of[3:]]), id="a node has two parents"
        ),
        pytest.param(first("left_child", lambda of: of[:-1]), id="a child is missing"),
        pytest.param(
            first("split_feature", lambda of: ["7", *of[1:]]), id="a column that is not there"
        ),
        pytest.param(
            first("threshold", lambda of: ["x", *of[1:]]), id="a threshold that is no number"
        ),
        pytest.param(first("leaf_value", lambda of: ["nan", *of[1:]]), id="a leaf without a value"),
        pytest.param(
            first("cat_boundaries", lambda of: [*of[:-1], "9"]),
            id="a set of categories beyond the end",
        ),
        pytest.param(first("num_leaves", lambda _: ["3"]), id="another number of leaves"),
        pytest.param(first("num_cat", lambda _: ["0"]), id="no sets of categories"),
        pytest.param(first("is_linear", lambda _: ["1"]), id="a linear tree"),
        pytest.param(lambda text: text.replace("num_class=1", "num_class=2"), id="two classes"),
        pytest.param(lambda text: text.replace("Tree=2", "Tree=3"), id="a tree out of order"),
        pytest.param(
            lambda text: text.replace("num_cat", "num_dog", 1), id="a field of another name"
        ),
        pytest.param(lambda text: text.replace("end of trees", "end of books"), id="no end"),
        pytest.param(lambda _: "", id="nothing"),
    ],
)
def test_a_damaged_text_is_refused(text: str, damage: Callable[[str], str]) -> None:
    damaged = damage(text)
    assert damaged != text
    with pytest.raises(ValueError, match="booster|number"):
        check_booster(damaged, COLUMNS)


def test_a_model_of_other_columns_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="max_feature_idx=4, not 5"):
        check_booster(text, COLUMNS + 1)
