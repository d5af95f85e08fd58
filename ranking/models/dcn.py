"""A trained DCN-v2 as it is served: NumPy transform, ONNX graph, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnxruntime

from feature_repo.arrays import Float32Array, Int32Array
from feature_repo.files import read_json, write_json
from ranking.models.base import Contributions, PairScorer, largest, save_description
from ranking.models.onnx import onnx_session
from ranking.row_schema import RowSchema
from ranking.rows import ItemRows, PairRows
from ranking.sigmoid import sigmoid
from ranking.transform import RowTransform

_CHUNK = 16_384
_MOST_PREPARED = 200_000


@dataclass(frozen=True)
class DcnRanker:
    """Runs the exported graph; sessions may be shared between threads.

    Attributes:
        schema: columns of a row.
        transform: what is done to numeric columns first.
        graph: the ONNX model. Inputs ``numeric`` float32 [n, F'], ``buckets`` int32 [n, F] and, if
            there are categorical columns, ``categorical`` int32 [n, C]; output ``logits`` float32
            [n, T].

    """

    kind: ClassVar[str] = "dcn"
    schema: RowSchema
    transform: RowTransform
    graph: bytes

    @cached_property
    def _session(self) -> onnxruntime.InferenceSession:
        return onnx_session(self.graph)

    def logits(self, numeric: Float32Array, categorical: Int32Array) -> Float32Array:
        """Return the network's logits, float32 [n, T], of raw rows [n, F] and [n, C]."""
        parts = [np.empty((0, len(self.schema.heads)), dtype=np.float32)]
        for start in range(0, len(numeric), _CHUNK):
            rows = slice(start, start + _CHUNK)
            parts.append(self._run(self.inputs(numeric[rows], categorical[rows])))
        return np.concatenate(parts)

    def inputs(
        self, numeric: Float32Array, categorical: Int32Array
    ) -> dict[str, Float32Array | Int32Array]:
        """Return what the graph reads of raw rows [n, F] and [n, C]."""
        codes = self.schema.known_codes(categorical)
        return self._named(self.transform(numeric), self.transform.buckets(numeric), codes)

    def _named(
        self, numeric: Float32Array, buckets: Int32Array, categorical: Int32Array
    ) -> dict[str, Float32Array | Int32Array]:
        inputs: dict[str, Float32Array | Int32Array] = {"numeric": numeric, "buckets": buckets}
        return inputs | {"categorical": categorical} if self.schema.categorical else inputs

    def _run(self, inputs: dict[str, Float32Array | Int32Array]) -> Float32Array:
        return np.asarray(self._session.run(["logits"], inputs)[0])

    def predict(self, numeric: Float32Array, categorical: Int32Array) -> Float32Array:
        """See ``Ranker.predict``."""
        return sigmoid(self.logits(numeric, categorical)).astype(np.float32)

    def for_items(self, items: ItemRows) -> PairScorer:
        """See ``Ranker.for_items``: an item's inputs are computed once, a user's once a request.

        Inputs of a very large catalogue would take gigabytes: there rows are built as offline.
        """
        if len(items.numeric) > _MOST_PREPARED:
            return lambda pairs: self.predict(*pairs.join(items))
        first = self.schema.pair_columns
        last = len(self.schema.numeric) - items.numeric.shape[1]
        spans = (slice(first), slice(first, last), slice(last, None))
        of_pair, of_user, of_item = (self.transform.part(span) for span in spans)
        widths = [len(part.median) for part in (of_pair, of_user, of_item)]
        item_values, item_buckets = of_item(items.numeric), of_item.buckets(items.numeric)

        def score(pairs: PairRows) -> Float32Array:
            size, user = (len(pairs), 1), pairs.user_numeric[None, :]
            values = [of_pair(pairs.pair), np.tile(of_user(user), size), item_values[pairs.item]]
            # As the transform has it: the standardised columns of all parts, then their indicators.
            standard = [part[:, :width] for part, width in zip(values, widths, strict=True)]
            indicators = [part[:, width:] for part, width in zip(values, widths, strict=True)]
            buckets = [
                of_pair.buckets(pairs.pair),
                np.tile(of_user.buckets(user), size),
                item_buckets[pairs.item],
            ]
            codes = [np.tile(pairs.user_categorical, size), items.categorical[pairs.item]]
            numeric, bucketed = (
                np.concatenate(standard + indicators, axis=1),
                np.concatenate(buckets, axis=1),
            )
            categorical = self.schema.known_codes(np.concatenate(codes, axis=1))
            return sigmoid(self._run(self._named(numeric, bucketed, categorical))).astype(
                np.float32
            )

        return score

    def explain(
        self, numeric: Float32Array, categorical: Int32Array, top: int | None = None
    ) -> Contributions:
        """See ``Ranker.explain``: occlusion (Zeiler & Fergus 2014).

        The fall of the weighted log-odds when a column is replaced by its training median, or by
        unknown. One batch of 1 + F + C rows. Interactions are counted with each of their columns,
        so the values need not add up.
        """
        width, columns = len(numeric), len(numeric) + len(categorical)
        numerics = np.repeat(numeric[None, :], columns + 1, axis=0)
        codes = np.repeat(categorical[None, :], columns + 1, axis=0)
        numerics[np.arange(width) + 1, np.arange(width)] = self.transform.median
        codes[np.arange(width, columns) + 1, np.arange(columns - width)] = 0
        worth = self.logits(numerics, codes) @ self.schema.weights
        return largest(self.schema.numeric + self.schema.categorical, worth[0] - worth[1:], top)

    def save(self, folder: Path) -> None:
        """See ``Ranker.save``."""
        save_description(folder, self.kind, self.schema)
        write_json(folder / "transform.json", self.transform.to_dict())
        (folder / "network.onnx").write_bytes(self.graph)

    @classmethod
    def load(cls, folder: Path, schema: RowSchema) -> DcnRanker:
        """Return the ranker saved in ``folder``."""
        transform = RowTransform.from_dict(read_json(folder / "transform.json"))
        ranker = cls(schema, transform, (folder / "network.onnx").read_bytes())
        _ = (
            ranker._session
        )  # made now, so that a broken file is found at start and not by a request
        return ranker
