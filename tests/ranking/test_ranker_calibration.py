import json

import numpy as np
import pytest

from ranking.calibration import Calibration, HeadCalibration, fit_calibration
from ranking.metrics import auc, ece, log_loss
from ranking.sigmoid import fit_sigmoid, logit, sigmoid


def rows(seed: int, n: int = 20_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return raw p, labels and requests.

    Head 0 over-confident (a sigmoid mends it), head 1 with a step.
    """
    random = np.random.default_rng(seed)
    truth = np.stack([sigmoid(random.normal(-2, 1, n)), random.random(n)], axis=1)
    stepped = np.where(truth[:, 1] < 0.6, 0.05, 0.3)
    labels = random.random((n, 2)) < np.stack([truth[:, 0], stepped], axis=1)
    raw = np.stack([sigmoid(2.5 * logit(truth[:, 0]) + 1), truth[:, 1]], axis=1)
    return raw.astype(np.float32), labels.astype(np.float32), np.repeat(np.arange(n // 20), 20)


def test_lowers_the_error_and_keeps_the_order() -> None:
    calibration = fit_calibration(*rows(0))
    assert [head.method for head in calibration.heads] == ["platt", "isotonic"]
    raw, labels, _ = rows(1)
    p = calibration(raw)
    for head in range(2):
        assert ece(labels[:, head], p[:, head]) < 0.25 * ece(labels[:, head], raw[:, head])
        assert log_loss(labels[:, head], p[:, head]) < log_loss(labels[:, head], raw[:, head])
        assert auc(labels[:, head], p[:, head]) == pytest.approx(
            auc(labels[:, head], raw[:, head]), abs=2e-3
        )
        different = np.diff(np.unique(raw[:, head])) > 0
        assert (
            np.diff(calibration(np.unique(raw[:, head])[:, None].repeat(2, 1))[:, head])[different]
            > 0
        ).all()


def test_survives_json_exactly() -> None:
    calibration = fit_calibration(*rows(0))
    again = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    assert again == calibration
    assert np.array_equal(again(rows(1)[0]), calibration(rows(1)[0]))


def test_one_class_is_left_alone_and_few_positives_get_two_parameters() -> None:
    raw, labels, request = rows(0, 2000)
    labels[:, 0] = 0.0
    labels[:, 1] = np.arange(2000) % 200 == 0
    calibration = fit_calibration(raw, labels, request)
    assert calibration.heads[0] == HeadCalibration()
    assert calibration.heads[1].method == "platt"
    assert calibration(raw)[:, 1].mean() == pytest.approx(0.005, abs=0.002)


def test_sigmoid_never_reverses_the_order() -> None:
    values = np.linspace(-3, 3, 100)
    slope, _ = fit_sigmoid(values, (values < 0).astype(np.float64))
    assert slope > 0
    slope, intercept = fit_sigmoid(
        np.full(5_000, -4.33) + 1e-15 * np.arange(5_000), np.arange(5_000) < 40
    )
    assert abs(slope) < 10 and sigmoid(slope * -4.33 + intercept) == pytest.approx(
        40 / 5_000, rel=0.05
    )
    slope, intercept = fit_sigmoid(np.zeros(10), np.array([1.0] * 3 + [0.0] * 7))
    assert sigmoid(intercept) == pytest.approx(np.mean([4 / 5] * 3 + [1 / 9] * 7), abs=1e-3)
    assert np.isfinite([slope, intercept]).all()


def test_logit_is_finite_at_the_ends() -> None:
    assert logit([0.0, 0.5, 1.0]) == pytest.approx([np.log(1e-12), 0.0, -np.log(1e-12)])
