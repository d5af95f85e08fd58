"""The network ranker with 8-bit weights and products."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from feature_repo.arrays import Float32Array, Int32Array
from ranking.data import RankingData
from ranking.models.dcn import DcnRanker

_CALIBRATION_ROWS = 4_096
_BATCH = 256


def dynamic_int8(ranker: DcnRanker) -> DcnRanker:
    """Return the ranker with int8 weights.

    The ranges of what they are multiplied with are taken anew at each call.
    """
    return _quantised(ranker, lambda given, made: quantize_dynamic(given, made, per_channel=True))


def static_int8(ranker: DcnRanker, rows: RankingData) -> DcnRanker:
    """Return the ranker in static int8 (QDQ): int8 weights and uint8 activations.

    The ranges of the activations are measured on some training rows.

    Args:
        ranker: in float32.
        rows: training rows, of which at most 4,096, evenly spaced, are run.

    """
    reader = _Batches(ranker, rows.sample(_CALIBRATION_ROWS))
    settings = {
        "quant_format": QuantFormat.QDQ,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
    }
    return _quantised(
        ranker,
        lambda given, made: quantize_static(given, made, reader, per_channel=True, **settings),
    )


def _quantised(ranker: DcnRanker, quantise: Callable[[Path, Path], None]) -> DcnRanker:
    root = logging.getLogger()
    level = root.level
    root.setLevel(
        logging.ERROR
    )  # the quantiser asks for a preparation that changes nothing in this graph
    try:
        with tempfile.TemporaryDirectory() as folder:
            given, made = Path(folder) / "given.onnx", Path(folder) / "made.onnx"
            model = onnx.load_from_string(ranker.graph)
            # The quantiser transposes weights and would find their old shapes noted here.
            del model.graph.value_info[:]
            given.write_bytes(model.SerializeToString())
            quantise(given, made)
            return replace(ranker, graph=made.read_bytes())
    finally:
        root.setLevel(level)


class _Batches(CalibrationDataReader):
    """Hands out batches of rows as the graph reads them."""

    def __init__(self, ranker: DcnRanker, rows: RankingData) -> None:
        self._batches = self._of(ranker, rows)

    @staticmethod
    def _of(ranker: DcnRanker, rows: RankingData) -> Iterator[dict[str, Float32Array | Int32Array]]:
        for start in range(0, len(rows), _BATCH):
            part = slice(start, start + _BATCH)
            yield ranker.inputs(rows.numeric[part], rows.categorical[part])

    def get_next(self) -> dict[str, Float32Array | Int32Array] | None:
        """Return the next batch, None after the last."""
        return next(self._batches, None)
