"""Checks of every training: it can overfit a batch, learns nothing from noise, and stays finite."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median

from feature_repo.errors import FunnelError

_REMEMBERED = 50


class CannotLearn(FunnelError):
    """A training failed one of its own checks: the data or the settings are broken."""


@dataclass
class Guard:
    """Follows losses and gradient norms (before clipping) from step to step.

    A norm has exploded if it is more than ``exploded`` times the median of the 50 before it.
    Medians below 1 count as 1: losses are a few nats, and growth from almost zero is harmless.

    Attributes:
        name: the model in training, for the message.
        exploded: see above.
        largest_norm: the largest gradient norm so far.
        steps: number of steps so far.

    """

    name: str
    exploded: float = 1_000.0
    largest_norm: float = 0.0
    steps: int = 0
    _norms: list[float] = field(default_factory=list)

    def __call__(self, loss: float, norm: float = 0.0) -> None:
        """Check one step.

        Raises:
            CannotLearn: the loss or the norm is not finite, or the norm exploded.

        """
        self.steps += 1
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise CannotLearn(
                f"{self.name}: loss {loss:g}, gradient norm {norm:g} at step {self.steps}"
            )
        usual = max(1.0, median(self._norms)) if self._norms else math.inf
        if norm > self.exploded * usual:
            raise CannotLearn(
                f"{self.name}: gradient norm {norm:g} at step {self.steps}, {usual:g} is usual"
            )
        self._norms = [*self._norms[1 - _REMEMBERED :], norm]
        self.largest_norm = max(self.largest_norm, norm)


def check_learnt(name: str, before: float, after: float) -> None:
    """Refuse a model whose loss did not halve while it overfitted one batch.

    A loss that starts at zero (there is only one answer) need not fall.

    Raises:
        CannotLearn: the loss did not fall enough.

    """
    if not after < max(before / 2, 1e-6):
        raise CannotLearn(
            f"{name}: one batch cannot be overfitted: loss {before:.3f} -> {after:.3f}"
        )


def check_chance(name: str, auc: float, tolerance: float) -> None:
    """Refuse a model that predicts shuffled labels of held-out rows better or worse than chance.

    That happens only if held-out labels leak into the training, or if the measure is wrong.

    Raises:
        CannotLearn: the AUC is farther than ``tolerance`` from .5.

    """
    if not abs(auc - 0.5) <= tolerance:
        raise CannotLearn(
            f"{name}: AUC {auc:.3f} on shuffled labels of held-out rows, "
            f".5 within {tolerance:.3f} is expected: "
            "held-out labels leak into the training"
        )
