"""A view of on-demand features: which values its function takes, and which features it gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from feature_repo.arrays import Float32Array
from feature_repo.on_demand.function import FunctionText

Owner = Literal["user", "item", "request"]
"""Whose value an input is."""

Mode = Literal["pandas", "python"]
"""What the function takes and returns: a frame, or lists by name."""

Values = npt.NDArray[Any]
"""An input's values ``[n]``: float64 with NaN for missing, or objects with None for missing."""


class OnDemandError(Exception):
    """The function of an on-demand view raised, or returned something else than it should."""


@dataclass(frozen=True)
class Input:
    """A value that a function takes.

    Attributes:
        owner: whose it is.
        view: the feature view, or the request source.
        name: the feature, or the field of the request.
        numeric: whether it is a number.

    """

    owner: Owner
    view: str
    name: str
    numeric: bool = True


@dataclass(frozen=True)
class OnDemandView:
    """Features that a function computes for each candidate of a request.

    Attributes:
        name: of the view.
        features: names of what it computes, all of them numbers.
        inputs: what the function takes.
        mode: how it takes and returns values.
        function: the function.

    """

    name: str
    features: tuple[str, ...]
    inputs: tuple[Input, ...]
    mode: Mode
    function: FunctionText

    @cached_property
    def _run(self) -> Any:
        return self.function.load()

    @cached_property
    def _names(self) -> tuple[tuple[str, ...], ...]:
        """For each input, the names under which the function finds it, as in Feast."""
        times = Counter(given.name for given in self.inputs)
        return tuple(
            (given.name,)
            if given.owner == "request"
            else (f"{given.view}__{given.name}", *([given.name] if times[given.name] == 1 else []))
            for given in self.inputs
        )

    def compute(self, values: Sequence[Values], size: int) -> Float32Array:
        """Return the features of ``n`` candidates, float32 ``[n, F]``; NaN: missing.

        Args:
            values: for each of ``inputs``, one value per candidate.
            size: ``n``.

        Raises:
            OnDemandError: the function raised, or returned no column ``[n]`` for each feature.

        """
        given = {
            name: column
            for names, column in zip(self._names, values, strict=True)
            for name in names
        }
        try:
            return self._numbers(self._returned(given, size), size)
        except Exception as error:
            raise OnDemandError(f"{type(error).__name__}: {error}") from error

    def _returned(self, given: Mapping[str, Values], size: int) -> Any:
        if self.mode == "pandas":
            return self._run(_frame(given, size))
        return self._run({name: _with_none(column) for name, column in given.items()})

    def _numbers(self, returned: Any, size: int) -> Float32Array:
        out = np.empty((size, len(self.features)), dtype=np.float32)
        for number, name in enumerate(self.features):
            column = returned[name]
            if isinstance(column, pd.Series):  # its types of numbers may have a missing value
                column = column.to_numpy(np.float64, na_value=np.nan)
            column = np.asarray(column, dtype=np.float64)
            if column.shape != (size,):
                raise ValueError(f"'{name}' has the shape {column.shape} for {size} rows")
            out[:, number] = column
        out[~np.isfinite(out)] = np.nan
        return out

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "name": self.name,
            "features": list(self.features),
            "inputs": [list(astuple(given)) for given in self.inputs],
            "mode": self.mode,
            "function": self.function.name,
            "source": self.function.source,
            "imports": [list(pair) for pair in self.function.imports],
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> OnDemandView:
        """Restore what ``to_dict`` gave."""
        imports = tuple((name, origin) for name, origin in raw["imports"])
        return cls(
            raw["name"],
            tuple(raw["features"]),
            tuple(Input(*given) for given in raw["inputs"]),
            raw["mode"],
            FunctionText(raw["function"], raw["source"], imports),
        )


def _frame(given: Mapping[str, Values], size: int) -> pd.DataFrame:
    """Return columns ``[n]`` as a frame; one block of numbers is made in a third of the time."""
    index = pd.RangeIndex(size)
    if not all(column.dtype == np.float64 for column in given.values()):
        return pd.DataFrame(given, index=index, copy=False)
    block = np.empty((len(given), size))
    for row, column in zip(block, given.values(), strict=True):
        row[:] = column
    return pd.DataFrame(block.T, index=index, columns=list(given), copy=False)


def _with_none(column: Values) -> list[Any]:
    """Return values as a list, None where they are missing."""
    if column.dtype == object:
        return column.tolist()
    return [None if value != value else value for value in column.tolist()]
