import pytest

from pipelines.evaluation.baseline_tuning import LADDERS, climb

STEPS = {"a": (1.0, 2.0, 3.0, 4.0, 5.0), "b": (10.0, 20.0, 30.0)}


@pytest.mark.parametrize("top", [(2.0, 20.0), (5.0, 30.0), (1.0, 10.0), (3.0, 20.0)])
def test_the_top_of_a_hill_is_found_and_nothing_is_tried_twice(top):
    tried = []

    def height(setting):
        tried.append(setting)
        return -abs(setting["a"] - top[0]) - abs(setting["b"] - top[1]) / 10

    assert climb(STEPS, height) == {"a": top[0], "b": top[1]}
    assert tried[0] == {"a": 3.0, "b": 20.0}
    assert all(tried.count(setting) == 1 for setting in tried) and len(tried) < 15


def test_one_setting_may_have_to_wait_for_another():
    ridge = {(3.0, 20.0): 1.0, (3.0, 30.0): 2.0, (4.0, 30.0): 3.0, (5.0, 30.0): 4.0}
    assert climb(STEPS, lambda setting: ridge.get((setting["a"], setting["b"]), 0.0)) == {
        "a": 5.0,
        "b": 30.0,
    }


def test_a_plain_ends_where_it_began():
    assert climb(STEPS, lambda _: 1.0) == {"a": 3.0, "b": 20.0}


def test_ladders_go_up():
    for _, ladders in LADDERS.values():
        for values in ladders.values():
            assert list(values) == sorted(set(values))
