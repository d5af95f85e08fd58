"""How an exported network is run while serving: one place for the options of ONNX Runtime."""

from __future__ import annotations

import onnxruntime

from feature_repo.threads import inference_threads


def onnx_session(model: bytes) -> onnxruntime.InferenceSession:
    """Return a CPU session that uses ``inference_threads`` and that threads may share.

    Args:
        model: a serialised ONNX model.

    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = inference_threads()
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
