from dataclasses import replace

import numpy as np
import pytest
import torch

from feature_repo.sanity import Guard
from ranking.config import DcnConfig
from ranking.data import RankingData
from ranking.metrics import auc
from ranking.models.dcn import DcnRanker
from ranking.training.dcn_network import CrossNetwork, DcnNetwork, export_onnx
from ranking.training.fit_dcn import train_network
from ranking.transform import RowTransform
from tests.support.planted_rows import CONFIG, SCHEMA, planted, silent, task_of

SHORT = replace(CONFIG.dcn, min_steps=20, epochs=1, batch=256)


def network_of(data: RankingData, config: DcnConfig, seed: int = 0) -> DcnNetwork:
    task = task_of(data, config=replace(CONFIG, dcn=config, seed=seed))
    return train_network(task, Guard("dcn"), silent)


def outputs(network: DcnNetwork, transform: RowTransform, data: RankingData) -> np.ndarray:
    inputs = transform(data.numeric), transform.buckets(data.numeric), data.categorical
    with torch.inference_mode():
        return network(*map(torch.from_numpy, inputs)).numpy()


def test_one_batch_can_be_learnt_by_heart() -> None:
    data = planted(5, requests=4, candidates=16)
    data.labels[:] = np.random.default_rng(0).integers(0, 2, data.labels.shape)
    config = DcnConfig(
        batch=64,
        min_steps=300,
        patience=99,
        threads=1,
        weight_decay=0.0,
        unknown_rate=0.0,
        monitor="log_loss",
    )
    transform = RowTransform.fit(data.numeric)
    network = network_of(data, config)
    logits = outputs(network, transform, data)
    assert auc(data.labels[:, 0], logits[:, 0]) == auc(data.labels[:, 1], logits[:, 1]) == 1.0


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"structure": "stacked"},
        {"loss": "focal", "positive_weight": "balanced"},
        {"monitor": "log_loss", "hidden": ()},
    ],
)
def test_onnx_equals_torch(change: dict[str, object]) -> None:
    data, config = planted(6, requests=40), replace(SHORT, **change)
    transform = RowTransform.fit(data.numeric)
    network = network_of(data, config)
    ranker = DcnRanker(SCHEMA, transform, export_onnx(network, len(transform.sources)))
    for n in (1, 7, 300):
        rows = data.take(np.arange(n))
        expected = outputs(network, transform, rows)
        assert ranker.logits(rows.numeric, rows.categorical) == pytest.approx(expected, abs=1e-4)


def test_cross_layer_is_the_formula_of_the_paper() -> None:
    cross = CrossNetwork(2, layers=1)
    with torch.no_grad():
        cross.layers[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        cross.layers[0].bias.copy_(torch.tensor([0.5, -0.5]))
    # x0 * (W x0 + b) + x0 with x0 = (1, 2): (1 * 5.5 + 1, 2 * 10.5 + 2)
    assert cross(torch.tensor([[1.0, 2.0]])).tolist() == [[6.5, 23.0]]


def test_codes_never_seen_are_treated_as_unknown() -> None:
    data = planted(6, requests=40)
    transform = RowTransform.fit(data.numeric)
    network = network_of(data, SHORT)
    unseen, unknown, known = (
        replace(data, categorical=np.int32([[genre, 1]] * len(data))) for genre in (5, 0, 1)
    )
    assert np.array_equal(outputs(network, transform, unseen), outputs(network, transform, unknown))
    assert not np.array_equal(
        outputs(network, transform, known), outputs(network, transform, unknown)
    )


def test_seed_decides_and_global_state_is_left_alone() -> None:
    data = planted(6, requests=40)
    transform = RowTransform.fit(data.numeric)
    torch.manual_seed(3)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    networks = [network_of(data, SHORT, seed) for seed in (0, 0, 1)]
    one, same, other = (outputs(network, transform, data) for network in networks)
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_network_without_categories() -> None:
    network = DcnNetwork(width=3, bucket_counts=(4, 4), cardinalities=(), heads=2, config=SHORT)
    out = network(
        torch.zeros(5, 3),
        torch.zeros(5, 2, dtype=torch.int32),
        torch.zeros(5, 0, dtype=torch.int32),
    )
    assert out.shape == (5, 2)
