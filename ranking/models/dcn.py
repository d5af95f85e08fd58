"""A trained DCN-v2 as it is served: NumPy transform, ONNX graph, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnxruntime

from feature_repo.threads import inference_threads
from feature_repo.workspace import read_json, write_json
from ranking.data import Codes, Floats, RowSchema
from ranking.models.base import Contributions, PairScorer, largest, save_description
from ranking.rows import CROSS, ITEM_AGES, ItemRows, PairRows
from ranking.sigmoid import sigmoid
from ranking.transform import RowTransform

_CHUNK = 16_384


@dataclass(frozen=True)
class DcnRanker:
    """Runs the exported graph; sessions may be shared between threads.

    Attributes:
        schema: columns of a row.
        transform: what is done to numeric columns first.
        graph: the ONNX model. Inputs ``numeric`` float32 [n, F'], ``buckets`` int32 [n, F] and, if
            there are categorical columns, ``categorical`` int32 [n, C]; output ``logits`` float32 [n, T].

    """

    kind: ClassVar[str] = "dcn"
    schema: RowSchema
    transform: RowTransform
    graph: bytes

    @cached_property
    def _session(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = inference_threads(), 1
        return onnxruntime.InferenceSession(self.graph, options, providers=["CPUExecutionProvider"])

    def logits(self, numeric: Floats, categorical: Codes) -> Floats:
        """Return the network's logits, float32 [n, T], of raw rows [n, F] and [n, C]."""
        parts = [np.empty((0, len(self.schema.heads)), dtype=np.float32)]
        for start in range(0, len(numeric), _CHUNK):
            rows = slice(start, start + _CHUNK)
            raw, codes = numeric[rows], self.schema.known_codes(categorical[rows])
            parts.append(self._run(self.transform(raw), self.transform.buckets(raw), codes))
        return np.concatenate(parts)

    def _run(self, numeric: Floats, buckets: Codes, categorical: Codes) -> Floats:
        inputs = {"numeric": numeric, "buckets": buckets}
        if self.schema.categorical:
            inputs["categorical"] = categorical
        return np.asarray(self._session.run(["logits"], inputs)[0])

    def predict(self, numeric: Floats, categorical: Codes) -> Floats:
        """See ``Ranker.predict``."""
        return sigmoid(self.logits(numeric, categorical)).astype(np.float32)

    def for_items(self, items: ItemRows) -> PairScorer:
        """See ``Ranker.for_items``: what the network reads of an item is made once, of a user once a request."""
        width, user = len(self.schema.numeric), len(CROSS) + len(ITEM_AGES)
        item = width - items.numeric.shape[1]
        borders = (0, user, item, width)
        parts = [self.transform.part(slice(*pair)) for pair in pairwise(borders)]
        values, buckets = parts[2](items.numeric), parts[2].buckets(items.numeric)
        code = len(self.schema.categorical) - items.categorical.shape[1]

        def score(pairs: PairRows) -> Floats:
            mine = pairs.user_numeric[None, :]
            found = [parts[0](pairs.pair), parts[1](mine), values[pairs.item]]
            numeric = np.empty((len(pairs), sum(part.shape[1] for part in found)), dtype=np.float32)
            bucketed = np.empty((len(pairs), width), dtype=np.int32)
            spare = width  # the standardised columns of all parts come first, then their indicators
            for part, (first, last) in zip(found, pairwise(borders), strict=True):
                numeric[:, first:last] = part[:, : last - first]
                more = part.shape[1] - (last - first)
                numeric[:, spare : spare + more] = part[:, last - first :]
                spare += more
            bucketed[:, :user] = parts[0].buckets(pairs.pair)
            bucketed[:, user:item] = parts[1].buckets(mine)
            bucketed[:, item:] = buckets[pairs.item]
            categorical = np.empty((len(pairs), len(self.schema.categorical)), dtype=np.int32)
            categorical[:, :code] = pairs.user_categorical
            categorical[:, code:] = items.categorical[pairs.item]
            categorical = self.schema.known_codes(categorical)
            return sigmoid(self._run(numeric, bucketed, categorical)).astype(np.float32)

        return score

    def explain(self, numeric: Floats, categorical: Codes, top: int | None = None) -> Contributions:
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
        _ = ranker._session  # made now, so that a broken file is found at start and not by a request
        return ranker
