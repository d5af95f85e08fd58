"""Ids and attributes as integer codes: vocabularies fitted once, used alike offline and online.

Code 0 always means unknown (or, in a bag, padding), so that a value absent while fitting, a
missing attribute and a new user or item all have a well-defined encoding.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_repo.arrays import Float32Array, Float64Array, Int32Array
from feature_repo.dataset import AttributeKind

LARGEST_VOCABULARY = 20_000
_BAG_LENGTH = {"categorical": 1, "multi_categorical": 6, "text": 8}
_LEAST_COUNT = {"categorical": 1, "multi_categorical": 1, "text": 3}
_LEAST_SPREAD = 1e-6
_WORD = re.compile(r"\w+")


class Vocabulary:
    """A fixed list of strings; code 0 is every string that is not in it."""

    def __init__(self, values: Iterable[str]) -> None:
        self.values: Sequence[str] = list(values)
        self._codes = {value: code for code, value in enumerate(self.values, start=1)}

    def __len__(self) -> int:
        return len(self.values) + 1

    def code(self, value: Any) -> int:
        """Return the code of one value (0: unknown or missing)."""
        return self._codes.get(value, 0)

    def encode(self, values: Sequence[Any]) -> Int32Array:
        """Return the codes of many values, int32 ``[n]``."""
        get = self._codes.get
        return np.fromiter((get(value, 0) for value in values), dtype=np.int32, count=len(values))

    def names(self, codes: Int32Array) -> list[str]:
        """Return the strings of codes above 0."""
        values = self.values
        return [values[code - 1] for code in codes.tolist()]

    def grown(self, newer: Vocabulary) -> Vocabulary:
        """Return this vocabulary with new values of ``newer`` at its end: old codes stay."""
        added = [value for value in newer.values if value not in self._codes]
        return Vocabulary([*self.values, *added][: max(len(self.values), LARGEST_VOCABULARY)])

    @classmethod
    def fit(cls, values: Iterable[str], least_count: int = 1) -> Vocabulary:
        """Keep the most frequent values; ties are sorted, so equal data gives equal codes."""
        counts = Counter(values)
        frequent = [value for value, count in counts.items() if count >= least_count]
        frequent.sort(key=lambda value: (-counts[value], value))
        return cls(frequent[:LARGEST_VOCABULARY])


class ExtendedVocabulary(Vocabulary):
    """A shared vocabulary with added values at its end; the shared strings are not copied."""

    def __init__(self, base: Vocabulary, added: Sequence[str]) -> None:
        """``added``: values that ``base`` lacks; their codes follow its last one."""
        self.values = _Chain(base.values, added)
        self._base = base
        self._added = {value: code for code, value in enumerate(added, start=len(base))}

    def code(self, value: Any) -> int:
        """Return the code of one value (0: unknown or missing)."""
        return self._base.code(value) or self._added.get(value, 0)

    def encode(self, values: Sequence[Any]) -> Int32Array:
        """Return the codes of many values, int32 ``[n]``."""
        codes = self._base.encode(values)
        for row in np.flatnonzero(codes == 0).tolist():
            codes[row] = self._added.get(values[row], 0)
        return codes


class _Chain(Sequence[str]):
    """Two sequences, one after the other."""

    def __init__(self, first: Sequence[str], second: Sequence[str]) -> None:
        self._first = first
        self._second = second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = index + len(self) if index < 0 else index
        border = len(self._first)
        return self._first[index] if index < border else self._second[index - border]


@dataclass(frozen=True)
class Encoded:
    """Attributes of ``n`` users or items.

    ``codes`` int32 ``[n, L]``: every categorical, multi-categorical and text attribute side by
    side, offset into one common table (0: nothing). ``first`` int32 ``[n, A]``: the first code of
    each such attribute, by its own vocabulary. ``numbers`` float32 ``[n, M]``: numeric attributes
    as given, NaN where missing.
    """

    codes: Int32Array
    first: Int32Array
    numbers: Float32Array

    def __getitem__(self, rows: Any) -> Encoded:
        return Encoded(self.codes[rows], self.first[rows], self.numbers[rows])


class AttributeEncoder:
    """Encodes the attributes of one entity; fitted on the rows known when the model was trained."""

    def __init__(
        self,
        kinds: Mapping[str, AttributeKind],
        vocabularies: Mapping[str, Vocabulary],
        moments: Mapping[str, tuple[float, float]],
    ) -> None:
        self.kinds = dict(kinds)
        self.vocabularies = dict(vocabularies)
        self.moments = dict(moments)
        self.coded = [name for name, kind in self.kinds.items() if kind != "numeric"]
        self.numeric = [name for name, kind in self.kinds.items() if kind == "numeric"]
        self.offsets: dict[str, int] = {}
        size = 1
        for name in self.coded:
            self.offsets[name] = size
            size += len(self.vocabularies[name]) - 1
        self.table_size = size
        self.width = sum(_BAG_LENGTH[self.kinds[name]] for name in self.coded)

    @classmethod
    def fit(
        cls, kinds: Mapping[str, AttributeKind], columns: Mapping[str, Sequence[Any]]
    ) -> AttributeEncoder:
        """Fit a vocabulary, or for numbers the mean and deviation of their signed log1p.

        Args:
            kinds: the kind of each attribute.
            columns: the values of each attribute as given, one per row; None: missing.

        """
        vocabularies, moments = {}, {}
        for name, kind in kinds.items():
            if kind == "numeric":
                moments[name] = moments_of(columns[name])
            else:
                values = (part for value in columns[name] for part in parts(kind, value))
                vocabularies[name] = Vocabulary.fit(values, _LEAST_COUNT[kind])
        return cls(kinds, vocabularies, moments)

    def grown(self, newer: AttributeEncoder) -> AttributeEncoder:
        """Return the encoder with ``newer``'s new values at the end: codes keep their meaning."""
        grown = {
            name: self.vocabularies[name].grown(newer.vocabularies[name]) for name in self.coded
        }
        return AttributeEncoder(self.kinds, grown, self.moments)

    def encode(self, columns: Mapping[str, Sequence[Any]], rows: int) -> Encoded:
        """Encode ``rows`` rows; an attribute that is not among ``columns`` is unknown."""
        # Bags of codes: codes [rows, L] in one common table, first [rows, A] by each vocabulary.
        codes = np.zeros((rows, self.width), dtype=np.int32)
        first = np.zeros((rows, len(self.coded)), dtype=np.int32)
        start = 0
        for position, name in enumerate(self.coded):
            kind = self.kinds[name]
            vocabulary = self.vocabularies[name]
            length = _BAG_LENGTH[kind]
            shift = self.offsets[name] - 1
            for row, value in enumerate(columns.get(name, ())):
                known = [code for part in parts(kind, value) if (code := vocabulary.code(part))]
                bag = known[:length]
                if bag:
                    codes[row, start : start + len(bag)] = np.asarray(bag) + shift
                    first[row, position] = bag[0]
            start += length

        # Numbers [rows, M] as given, NaN where missing.
        numbers = np.full((rows, len(self.numeric)), np.nan, dtype=np.float32)
        for position, name in enumerate(self.numeric):
            if name in columns:
                numbers[:, position] = _floats(columns[name])
        return Encoded(codes, first, numbers)

    def standardise(self, numbers: Float32Array) -> Float32Array:
        """Return numbers as standardised signed logs, 0 where missing: an input of the towers."""
        if not self.numeric:
            return numbers
        mean, spread = zip(*(self.moments[name] for name in self.numeric), strict=True)
        return standardised(numbers, mean, spread)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "kinds": self.kinds,
            "vocabularies": {name: v.values for name, v in self.vocabularies.items()},
            "moments": {name: list(pair) for name, pair in self.moments.items()},
        }

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> AttributeEncoder:
        """Restore an encoder from its ``to_dict``."""
        vocabularies = {name: Vocabulary(values) for name, values in raw["vocabularies"].items()}
        return cls(
            raw["kinds"], vocabularies, {name: (m, s) for name, (m, s) in raw["moments"].items()}
        )


def moments_of(values: Sequence[Any]) -> tuple[float, float]:
    """Return mean and deviation of the signed log1p of numbers; missing ones do not count."""
    return _mean_and_deviation(_signed_log(_floats(values)))


def standardised(
    numbers: npt.NDArray[Any], mean: Sequence[float], spread: Sequence[float]
) -> Float32Array:
    """Return signed logs of numbers ``[n, M]``, standardised and clipped; 0 where missing.

    ``mean`` and ``spread``: M values each, as ``moments_of`` returns them.
    """
    scaled = np.clip((_signed_log(numbers) - np.array(mean)) / np.array(spread), -5.0, 5.0)
    return np.nan_to_num(scaled, nan=0.0).astype(np.float32)


def parts(kind: AttributeKind, value: Any) -> list[str]:
    """Return an attribute value as a bag of strings, empty if it is missing."""
    if isinstance(value, str):
        return [word.lower() for word in _WORD.findall(value)] if kind == "text" else [value]
    if kind == "multi_categorical" and isinstance(value, Sequence | np.ndarray):
        return [part for part in value if isinstance(part, str)]
    return []  # None, NaN or pandas' NA: missing


def _floats(values: Sequence[Any]) -> Float32Array:
    with np.errstate(over="ignore"):  # too large for float32 is infinite
        return np.array(
            [np.nan if value is None else value for value in values], dtype=np.float64
        ).astype(np.float32)


def _mean_and_deviation(numbers: Float64Array) -> tuple[float, float]:
    """Return mean and standard deviation of the finite numbers; a constant has deviation 1."""
    finite = numbers[np.isfinite(numbers)]
    if not len(finite):
        return 0.0, 1.0
    mean = float(finite.mean())
    spread = float(finite.std())
    # A deviation below float32's resolution is rounding: dividing by it would give 5 deviations.
    is_constant = spread <= _LEAST_SPREAD * max(1.0, abs(mean))
    return mean, 1.0 if is_constant else spread


def _signed_log(values: npt.NDArray[Any]) -> Float64Array:
    numbers = values.astype(np.float64)
    return np.asarray(np.sign(numbers) * np.log1p(np.abs(numbers)))
