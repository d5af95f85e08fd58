"""Fits DCN-v2 with torch and exports it; what is exported is served without torch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from feature_repo.arrays import Float32Array, Float64Array
from feature_repo.sanity import Guard
from ranking.config import DcnConfig
from ranking.data import RankingData
from ranking.metrics import log_loss, ndcg_at_k
from ranking.models.base import RankerLog
from ranking.models.dcn import DcnRanker
from ranking.sigmoid import logit, sigmoid
from ranking.training.dcn_network import DcnNetwork, export_onnx
from ranking.training.dcn_rows import DcnRows, batches
from ranking.training.dcn_weights import load_weights, share_unknown
from ranking.training.task import FitTask

_LEAST_STEPS_BETWEEN_CHECKS = 100
_OVERFIT_STEPS = 100
_OVERFIT_RATE = 5e-3
_CHUNK = 16_384

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of logits and labels, float32 [n, T] each, and weights, float32 [n]: a scalar."""


def fit_dcn(
    task: FitTask, guard: Guard, log: RankerLog, earlier: DcnRanker | None = None
) -> DcnRanker:
    """Train on ``task.train``, stop early by ``task.held_out``, export.

    The same seed, data, thread count and CPU give the same bytes. CUDA is used if there is one.

    Args:
        task: rows and settings.
        guard: shown the loss and gradient norm of every step.
        log: called with the progress, the mean loss and the held-out metric.
        earlier: an exported network to continue from, behind its own transform.

    Raises:
        CannotContinue: the earlier network has another shape.
        CannotLearn: a loss or gradient is not finite, or exploded.

    """
    if earlier:
        task = task.with_transform(earlier.transform)
    network = train_network(task, guard, log, earlier)
    graph = export_onnx(network, len(task.transform.sources))
    return DcnRanker(task.schema, task.transform, graph)


def train_network(
    task: FitTask, guard: Guard, log: RankerLog, earlier: DcnRanker | None = None
) -> DcnNetwork:
    """Return the network, on the CPU, with the weights that did best on ``task.held_out``.

    Raises:
        CannotContinue: the earlier network has another shape.
        CannotLearn: a loss or gradient is not finite, or exploded.

    """
    with _reproducible(task.config.seed, task.config.dcn.threads) as device:
        training = _Training(task, guard, device)
        if earlier:
            load_weights(training.network, task.schema, earlier)
        training.run(log)
        if not earlier:
            share_unknown(training.network, training.rows.categorical)
    return training.network.cpu().eval()


def overfit_dcn(task: FitTask, guard: Guard) -> tuple[float, float]:
    """Overfit a few rows, ``task.train``, and return the loss before and after.

    Raises:
        CannotLearn: a loss or gradient is not finite, or exploded.

    """
    with _reproducible(task.config.seed, task.config.dcn.threads) as device:
        training = _Training(task, guard, device)
        optimiser = torch.optim.AdamW(
            training.network.parameters(), lr=_OVERFIT_RATE, weight_decay=0.0
        )
        losses = [training.step(optimiser, training.rows) for _ in range(_OVERFIT_STEPS)]
    return losses[0], losses[-1]


def predict_network(network: DcnNetwork, rows: RankingData, task: FitTask) -> Float32Array:
    """Return the probabilities, float32 [n, T], of a trained network that is not exported."""
    tensors = DcnRows.of(rows, task, torch.device("cpu"))
    return _probabilities(network, tensors).astype(np.float32)


class _Training:
    """A network, the rows that it learns from, and its steps."""

    def __init__(self, task: FitTask, guard: Guard, device: torch.device) -> None:
        self.config = task.config.dcn
        self.rows = DcnRows.of(task.train, task, device)
        self._task = task
        self._guard = guard
        self.network = DcnNetwork(
            width=self.rows.numeric.shape[1],
            bucket_counts=task.transform.bucket_counts,
            cardinalities=task.schema.cardinalities,
            heads=len(task.schema.heads),
            config=self.config,
        ).to(device)

        # Start at each head's base rate, [T], else the first steps only learn that labels are rare.
        rates = self.rows.labels.double().mean(dim=0).cpu().numpy().clip(1e-6, 1 - 1e-6)
        with torch.no_grad():
            self.network.head.bias.copy_(torch.from_numpy(logit(rates)))
        self._loss = loss_of(self.config, torch.from_numpy(rates).float().to(device))

    def run(self, log: RankerLog) -> None:
        """Run AdamW with linear warm-up and decay; leave the best weights seen in the network."""
        config = self.config
        held_out = DcnRows.of(self._task.held_out, self._task, self.rows.labels.device)
        per_epoch = math.ceil(len(self.rows) / config.batch)
        steps = max(config.epochs * per_epoch, config.min_steps)
        between = max(per_epoch, _LEAST_STEPS_BETWEEN_CHECKS)
        optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        schedule = _warm_up_and_decay(optimiser, steps)

        best = -math.inf
        best_weights = copy.deepcopy(self.network.state_dict())
        checks_since_best = 0
        total = 0.0
        shuffled = batches(self.rows, config, self._task.config.seed)
        for step, batch in zip(range(1, steps + 1), shuffled, strict=False):
            total += self.step(optimiser, batch)
            schedule.step()
            if step % between and step != steps:
                continue

            quality = self._quality(held_out)
            metrics = {"loss": total / step, f"watch_{config.monitor}": quality}
            log("dcn", {"done": step / steps, **metrics})
            checks_since_best += 1
            if quality > best:
                best = quality
                best_weights = copy.deepcopy(self.network.state_dict())
                checks_since_best = 0
            if checks_since_best >= config.patience:
                break
        self.network.load_state_dict(best_weights)

    def step(self, optimiser: torch.optim.Optimizer, batch: DcnRows) -> float:
        """Learn from one batch and return its loss; a batch that the guard refuses changes nothing.

        Raises:
            CannotLearn: the loss or gradient is not finite, or exploded.

        """
        optimiser.zero_grad(set_to_none=True)
        value = self._loss(_logits(self.network.train(), batch), batch.labels, batch.weight)
        torch.autograd.backward(value)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_norm)
        self._guard(value.item(), norm.item())
        optimiser.step()
        return value.item()

    def _quality(self, held_out: DcnRows) -> float:
        """Return what early stopping maximises: NDCG@k, or the negative log loss over all heads."""
        rows, schema = self._task.held_out, self._task.schema
        p = _probabilities(self.network, held_out)
        if self.config.monitor == "ndcg":
            ndcg = ndcg_at_k(
                rows.relevance(schema),
                schema.score(p),
                rows.request,
                self._task.config.ndcg_k,
                weights=rows.request_weights(),
            )
            if not math.isnan(ndcg):
                return ndcg
        labels: Float32Array = rows.labels
        return -sum(log_loss(labels[:, head], p[:, head]) for head in range(p.shape[1]))


def loss_of(config: DcnConfig, rates: Tensor) -> Loss:
    """Return the loss, summed over heads, mean over rows; ``rates`` [T] are the base rates.

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


def _warm_up_and_decay(
    optimiser: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    warm_up = max(1, steps // 10)

    def rate(step: int) -> float:
        return min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))

    return torch.optim.lr_scheduler.LambdaLR(optimiser, rate)


def _logits(network: DcnNetwork, rows: DcnRows) -> Tensor:
    logits: Tensor = network(rows.numeric, rows.buckets, rows.categorical)
    return logits


def _probabilities(network: DcnNetwork, rows: DcnRows) -> Float64Array:
    """Return probabilities, float64 [n, T], in chunks that fit into memory."""
    network.eval()
    with torch.inference_mode():
        chunks = torch.split(torch.arange(len(rows), device=rows.labels.device), _CHUNK)
        logits = torch.cat([_logits(network, rows.take(chunk)) for chunk in chunks])
    return sigmoid(logits.cpu().numpy())


@contextmanager
def _reproducible(seed: int, threads: int) -> Iterator[torch.device]:
    """Yield the device; seed, threads and deterministic kernels are set for the block only."""
    threads_before = torch.get_num_threads()
    deterministic_before = torch.are_deterministic_algorithms_enabled()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # Sums are split by thread, so another number of threads rounds otherwise.
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(device.type == "cpu")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield device
    finally:
        torch.set_num_threads(threads_before)
        torch.use_deterministic_algorithms(deterministic_before)
