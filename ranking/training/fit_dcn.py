"""Training of DCN-v2. Only this module and the network import torch; what they make is served without."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional

from feature_repo.arrays import Float32Array, Float64Array
from feature_repo.sanity import Guard
from ranking.config import DcnConfig
from ranking.data import RankingData, RowSchema
from ranking.metrics import log_loss, ndcg_at_k
from ranking.models.base import CannotContinue, Log
from ranking.models.dcn import DcnRanker
from ranking.sigmoid import logit, sigmoid
from ranking.training.dcn_network import DcnNetwork, export_onnx
from ranking.transform import RowTransform

_LEAST_STEPS_BETWEEN_CHECKS = 100
_OVERFIT_STEPS, _OVERFIT_RATE = 100, 5e-3

_Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Rows:
    """Transformed rows as tensors: float32 [n, F'], int32 [n, F], int32 [n, C], float32 [n, T], float32 [n]."""

    numeric: Tensor
    buckets: Tensor
    categorical: Tensor
    labels: Tensor
    weight: Tensor

    @classmethod
    def of(
        cls, data: RankingData, transform: RowTransform, schema: RowSchema, device: torch.device
    ) -> _Rows:
        arrays = (
            transform(data.numeric),
            transform.buckets(data.numeric),
            schema.known_codes(data.categorical),
            np.asarray(data.labels, dtype=np.float32),
            data.weights(),
        )
        return cls(*(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> _Rows:
        columns = (self.numeric, self.buckets, self.categorical, self.labels, self.weight)
        return _Rows(*(column[rows] for column in columns))


def fit_dcn(
    train: RankingData,
    watch: RankingData,
    transform: RowTransform,
    schema: RowSchema,
    config: DcnConfig,
    seed: int,
    k: int,
    guard: Guard,
    log: Log,
    earlier: DcnRanker | None = None,
) -> DcnRanker:
    """Train on ``train``, stop by ``watch`` (held-out rows), export.

    The same seed, data, thread count and CPU give the same bytes. CUDA is used where there is any.
    With ``earlier`` its weights are trained on, behind its transform.

    Raises:
        CannotContinue: the earlier network has another shape.

    """
    transform = earlier.transform if earlier else transform
    network = train_network(train, watch, transform, schema, config, seed, k, guard, log, earlier)
    return DcnRanker(schema, transform, export_onnx(network, len(transform.sources)))


def train_network(
    train: RankingData,
    watch: RankingData,
    transform: RowTransform,
    schema: RowSchema,
    config: DcnConfig,
    seed: int,
    k: int,
    guard: Guard,
    log: Log,
    earlier: DcnRanker | None = None,
) -> DcnNetwork:
    """Return the network with the weights that did best on ``watch``, on the CPU.

    Labels of ``train`` may lie between 0 and 1: probabilities that another model gave.

    Raises:
        CannotContinue: the earlier network has another shape.
        CannotLearn: a loss or gradient is not finite, or exploded.

    """
    with _reproducible(seed, config.threads) as device:
        rows, watched = (_Rows.of(part, transform, schema, device) for part in (train, watch))
        network, loss = _untrained(rows, transform, schema, config)
        if earlier:
            load_weights(network, schema, earlier)

        def judge() -> float:
            return _judge(network, watched, watch, schema, config, k)

        _optimise(network, rows, loss, judge, config, seed, guard, log)
        if not earlier:
            _share_unknown(network, rows)
    return network.cpu().eval()


def load_weights(network: DcnNetwork, schema: RowSchema, earlier: DcnRanker) -> None:
    """Give a network the weights of an exported one; codes that are new since get the embedding of unknown.

    Args:
        network: of ``schema``, which extends the earlier one.
        schema: columns of the network's rows.
        earlier: the exported network.

    Raises:
        CannotContinue: it has another shape, or integers for weights.

    """
    graph = onnx.load_from_string(earlier.graph).graph
    weights = {
        part.name: torch.from_numpy(numpy_helper.to_array(part).copy())
        for part in graph.initializer
    }
    table = "category.table.weight"
    if table in weights:
        columns = torch.split(weights[table], list(earlier.schema.cardinalities))
        grown = zip(columns, schema.cardinalities, strict=True)
        weights[table] = torch.cat(
            [
                torch.cat([column, column[:1].expand(size - len(column), -1)])
                for column, size in grown
            ]
        )
    for name, value in network.named_parameters():
        if name not in weights or weights[name].shape != value.shape:
            raise CannotContinue(f"the network's {name} has another shape, or is no float")
    network.load_state_dict(
        {**network.state_dict(), **{name: weights[name] for name, _ in network.named_parameters()}}
    )


def probabilities(
    network: DcnNetwork, data: RankingData, transform: RowTransform, schema: RowSchema
) -> Float32Array:
    """Return the probabilities that a trained network gives, float32 [n, T], without the export of a graph."""
    rows = _Rows.of(data, transform, schema, torch.device("cpu"))
    return _probabilities(network, rows).astype(np.float32)


def overfit_dcn(
    batch: RankingData,
    transform: RowTransform,
    schema: RowSchema,
    config: DcnConfig,
    seed: int,
    guard: Guard,
) -> tuple[float, float]:
    """Learn a few rows by heart; return the loss before and after."""
    with _reproducible(seed, config.threads) as device:
        rows = _Rows.of(batch, transform, schema, device)
        network, loss = _untrained(rows, transform, schema, config)
        optimiser = torch.optim.AdamW(network.parameters(), lr=_OVERFIT_RATE, weight_decay=0.0)
        losses = [
            _step(network, optimiser, rows, loss, config, guard) for _ in range(_OVERFIT_STEPS)
        ]
    return losses[0], losses[-1]


def _untrained(
    rows: _Rows, transform: RowTransform, schema: RowSchema, config: DcnConfig
) -> tuple[DcnNetwork, _Loss]:
    device = rows.labels.device
    network = DcnNetwork(
        rows.numeric.shape[1],
        transform.bucket_counts,
        schema.cardinalities,
        len(schema.heads),
        config,
    ).to(device)
    rates = rows.labels.double().mean(dim=0).cpu().numpy().clip(1e-6, 1 - 1e-6)
    with (
        torch.no_grad()
    ):  # start at the base rate, else the first steps only learn that labels are rare
        network.head.bias.copy_(torch.from_numpy(logit(rates)))
    return network, _loss(config, torch.from_numpy(rates).float().to(device))


def _optimise(
    network: DcnNetwork,
    rows: _Rows,
    loss: _Loss,
    judge: Callable[[], float],
    config: DcnConfig,
    seed: int,
    guard: Guard,
    log: Log,
) -> None:
    """Run AdamW with linear warm-up and decay; leave the best weights seen in ``network``."""
    per_epoch = math.ceil(len(rows) / config.batch)
    steps = max(config.epochs * per_epoch, config.min_steps)
    between = max(per_epoch, _LEAST_STEPS_BETWEEN_CHECKS)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    warm_up = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))
    )
    best, best_weights, waited, total = -math.inf, copy.deepcopy(network.state_dict()), 0, 0.0
    for step, batch in zip(range(1, steps + 1), _batches(rows, config, seed), strict=False):
        total += _step(network, optimiser, batch, loss, config, guard)
        schedule.step()
        if step % between and step != steps:
            continue
        quality = judge()
        log("dcn", {"done": step / steps, "loss": total / step, f"watch_{config.monitor}": quality})
        waited = 0 if quality > best else waited + 1
        if quality > best:
            best, best_weights = quality, copy.deepcopy(network.state_dict())
        if waited >= config.patience:
            break
    network.load_state_dict(best_weights)


def _step(
    network: DcnNetwork,
    optimiser: torch.optim.Optimizer,
    batch: _Rows,
    loss: _Loss,
    config: DcnConfig,
    guard: Guard,
) -> float:
    """Learn from one batch and return its loss; nothing is learnt from one that the guard refuses."""
    optimiser.zero_grad(set_to_none=True)
    value = loss(_logits(network.train(), batch), batch.labels, batch.weight)
    torch.autograd.backward(value)
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), config.gradient_norm)
    guard(value.item(), norm.item())
    optimiser.step()
    return value.item()


def _batches(rows: _Rows, config: DcnConfig, seed: int) -> Iterator[_Rows]:
    """Yield shuffled batches without end, a few categories hidden in each.

    Hiding codes teaches the embedding of unknown, which is what a new item or user will have.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.split(torch.randperm(len(rows), generator=generator), config.batch):
            batch = rows.take(chosen.to(rows.labels.device))
            kept = torch.rand(batch.categorical.shape, generator=generator) >= config.unknown_rate
            hidden = batch.categorical * kept.to(batch.categorical.device)
            yield replace(batch, categorical=hidden)


def _loss(config: DcnConfig, rates: Tensor) -> _Loss:
    """Return the loss of logits and labels [n, T] and weights [n]: summed over heads, mean over rows.

    Class weights and focal loss (Lin et al. 2017) bend probabilities on purpose; calibration
    straightens them.
    """
    weight = (1 - rates) / rates if config.positive_weight == "balanced" else None

    def loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        entropy = functional.binary_cross_entropy_with_logits(
            logits, labels, pos_weight=weight, reduction="none"
        )
        if config.loss == "focal":
            p = torch.sigmoid(logits)
            entropy = entropy * (labels - p).abs() ** config.focal_gamma
        return (entropy.sum(dim=1) * weights).mean()

    return loss


def _logits(network: DcnNetwork, rows: _Rows) -> Tensor:
    logits: Tensor = network(rows.numeric, rows.buckets, rows.categorical)
    return logits


def _judge(
    network: DcnNetwork,
    watched: _Rows,
    watch: RankingData,
    schema: RowSchema,
    config: DcnConfig,
    k: int,
) -> float:
    """Return what early stopping maximises: NDCG@k, or the negative log loss summed over heads."""
    p = _probabilities(network, watched)
    if config.monitor == "ndcg":
        quality = ndcg_at_k(
            watch.wanted(schema), schema.score(p), watch.request, k, watch.request_weights()
        )
        if not math.isnan(quality):
            return quality
    labels: Float32Array = watch.labels
    return -sum(log_loss(labels[:, head], p[:, head]) for head in range(p.shape[1]))


def _probabilities(network: DcnNetwork, rows: _Rows) -> Float64Array:
    network.eval()
    with torch.inference_mode():
        chunks = torch.split(torch.arange(len(rows), device=rows.labels.device), 16_384)
        logits = torch.cat([_logits(network, rows.take(chunk)) for chunk in chunks])
    return sigmoid(logits.cpu().numpy())


def _share_unknown(network: DcnNetwork, rows: _Rows) -> None:
    """Give codes that no training row has the embedding of unknown, instead of their random start."""
    if network.category is None:
        return
    table, starts = network.category.table.weight, network.category.starts.long()
    seen = torch.zeros(len(table), dtype=torch.bool, device=table.device)
    seen[(rows.categorical + starts).flatten().long()] = True
    seen[starts] = True
    codes = torch.arange(len(table), device=table.device)
    unknown = starts[torch.searchsorted(starts, codes, right=True) - 1]
    with torch.no_grad():
        table.copy_(torch.where(seen[:, None], table, table[unknown]))


@contextmanager
def _reproducible(seed: int, threads: int) -> Iterator[torch.device]:
    """Yield the device, with seed, thread count and deterministic kernels set for the block only."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # Sums are split by thread, so another number of threads rounds otherwise.
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(device.type == "cpu")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield device
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
