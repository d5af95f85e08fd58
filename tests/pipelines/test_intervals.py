"""Bootstrap and paired tests on data whose truth is known."""

import numpy as np
import pytest
from scipy.stats import wilcoxon

from pipelines.evaluation.intervals import UserBootstrap, interval, paired


def events_of(generator, users, spread):
    """Return users and values of events: a user has one to nine, around a level of their own."""
    counts = generator.integers(1, 10, users)
    user = np.repeat(np.arange(users), counts)
    return user, (spread * generator.normal(size=users))[user] + generator.normal(size=len(user))


def test_interval_covers_the_mean_about_as_often_as_it_says():
    generator, covered, naive = np.random.default_rng(1), 0, 0
    for seed in range(300):
        user, values = events_of(generator, 120, spread=1.0)
        low, high = interval(UserBootstrap(user, 300, seed).means([values])[:, 0])
        covered += low <= 0.0 <= high
        error = 1.96 * values.std() / np.sqrt(len(values))
        naive += abs(values.mean()) <= error
    assert 0.90 <= covered / 300 <= 0.985
    assert naive < covered - 30  # events of one user are not independent, and the data says so


def test_resamples_are_of_whole_users():
    user, values = np.array([0, 0, 1, 1]), np.array([1.0, 1.0, 0.0, 0.0])
    draws = UserBootstrap(user, 400).means([values])[:, 0]
    assert set(draws.tolist()) == {0.0, 0.5, 1.0}


def test_the_same_seed_draws_the_same_and_parts_add_up(monkeypatch):
    generator = np.random.default_rng(2)
    user, values = events_of(generator, 50, spread=0.5)
    some = values > 0
    whole = UserBootstrap(user, 200).means([values, some], [np.ones(len(user), dtype=bool)] * 2)
    monkeypatch.setattr(
        "pipelines.evaluation.intervals._CELLS", 50 * 7
    )  # in parts of seven resamples
    again = UserBootstrap(user, 200).means([values])
    assert np.allclose(whole[:, :1], again)
    assert whole[:, 1].mean() == pytest.approx(some.mean(), abs=0.03)


def test_a_slice_that_no_resample_has_is_no_number():
    user, values = np.array([0, 1, 2]), np.ones(3)
    draws = UserBootstrap(user, 200).means([values, values], [user == 0, user > 5])
    assert np.isnan(draws[:, 1]).all() and interval(draws[:, 1]) is None
    assert interval(draws[:, 0]) == (1.0, 1.0)  # resamples without user 0 do not count


def test_a_planted_difference_is_found():
    generator = np.random.default_rng(4)
    user, values = events_of(generator, 300, spread=1.0)
    found = paired(
        UserBootstrap(user), values + 0.2 + 0.5 * generator.normal(size=len(user)), values
    )
    assert found.difference == pytest.approx(0.2, abs=0.05)
    assert found.interval[0] > 0.1 and found.interval[1] < 0.3
    assert found.p_bootstrap < 0.01 and found.p_wilcoxon < 1e-6
    assert found.first - found.second == pytest.approx(found.difference)


def test_wilcoxon_is_scipys_over_users():
    generator = np.random.default_rng(5)
    user, values = events_of(generator, 80, spread=1.0)
    other = values + generator.normal(0.05, 0.3, len(user))
    means = [float((values - other)[user == one].mean()) for one in range(80)]
    assert paired(UserBootstrap(user), values, other).p_wilcoxon == pytest.approx(
        wilcoxon(means).pvalue
    )


def test_equal_models_do_not_differ():
    user, values = events_of(np.random.default_rng(6), 100, spread=1.0)
    found = paired(UserBootstrap(user), values, values.copy())
    assert found.difference == 0.0 and found.interval == (0.0, 0.0)
    assert found.p_bootstrap == found.p_wilcoxon == 1.0


def test_no_difference_is_found_only_as_often_as_the_level_says():
    generator, found = np.random.default_rng(7), []
    for seed in range(200):
        user, noise = events_of(generator, 60, spread=0.5)
        of = paired(UserBootstrap(user, 300, seed), noise, np.zeros_like(noise))
        found.append((of.p_bootstrap < 0.05, of.p_wilcoxon < 0.05))
    assert (np.mean(found, axis=0) <= 0.11).all()


@pytest.mark.parametrize(("count", "least"), [(1, 1.0), (2, 0.5), (3, 2 / 27)])
def test_a_few_users_prove_nothing(count, least):
    user = np.repeat(np.arange(count), 20)
    found = paired(UserBootstrap(user), np.ones(len(user)), np.zeros(len(user)))
    assert found.p_bootstrap == pytest.approx(least)


def test_no_events_have_no_interval():
    found = paired(UserBootstrap(np.zeros(0)), np.zeros(0), np.zeros(0))
    assert found.interval is None and found.difference == 0.0
    assert found.p_bootstrap == found.p_wilcoxon == 1.0
