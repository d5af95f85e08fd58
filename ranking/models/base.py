"""What every ranker can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from feature_repo.arrays import Float32Array, Int32Array
from feature_repo.files import write_json
from ranking.row_schema import RowSchema
from ranking.rows import ItemRows, PairRows

Contributions = list[tuple[str, float]]

PairScorer = Callable[[PairRows], Float32Array]
"""Scores one request's user beside ``n`` items of a catalogue: float32 ``[n, T]``."""

RankerLog = Callable[[str, dict[str, float]], None]
"""Called with a kind and its figures during its training."""


class CannotContinue(Exception):
    """An earlier model cannot be trained on; the message says why."""


class Ranker(Protocol):
    """A trained model of one kind; reads raw rows and owns whatever transform it needs."""

    @property
    def kind(self) -> str:
        """Return the name that ``load`` dispatches on."""

    @property
    def schema(self) -> RowSchema:
        """Return the columns that the model was trained on."""

    def predict(self, numeric: Float32Array, categorical: Int32Array) -> Float32Array:
        """Return uncalibrated probabilities, float32 [n, T], of raw rows; n may be 0.

        ``numeric`` is [n, F] and ``categorical`` [n, C].
        """

    def for_items(self, items: ItemRows) -> PairScorer:
        """Return a scorer of pairs with these items.

        It gives the same as ``predict`` of the joined rows. What depends on the items alone may be
        computed in advance.
        """

    def explain(
        self, numeric: Float32Array, categorical: Int32Array, top: int | None = None
    ) -> Contributions:
        """Return what moved the score of one row, [F] and [C], largest absolute contribution first.

        Contributions are in weighted log-odds, ``sum_t weight_t * logit_t`` before calibration; all
        columns are returned unless ``top`` says how many.
        """

    def save(self, folder: Path) -> None:
        """Write ``model.json``, ``schema.json`` and the model's files into an existing folder."""


class PredictsJoinedRows:
    """A ranker for which nothing can be prepared."""

    def for_items(self: Any, items: ItemRows) -> PairScorer:
        """See ``Ranker.for_items``."""
        return lambda pairs: self.predict(*pairs.join(items))


def save_description(folder: Path, kind: str, schema: RowSchema, **settings: Any) -> None:
    """Write the two files that every saved ranker has."""
    write_json(folder / "model.json", {"kind": kind, **settings})
    write_json(folder / "schema.json", schema.to_dict())


def largest(
    names: Sequence[str], values: npt.NDArray[np.floating], top: int | None
) -> Contributions:
    """Return names with their values, largest absolute value first."""
    order = np.argsort(-np.abs(values), kind="stable")[:top]
    return [(names[column], float(values[column])) for column in order]
