"""Compiled functions: loops over one request's candidates that take NumPy many passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

from feature_repo.arrays import Float32Array

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F, **options: Any) -> F:
    """Compile a function of arrays and numbers at its first call, and cache the result on disk.

    The function releases the GIL. Without a writable cache folder, as in a container without a
    home, every process compiles anew.

    Args:
        function: of arrays, numbers and named tuples of them.
        options: further options of ``numba.njit``.

    """
    try:
        return cast(F, numba.njit(cache=True, nogil=True, **options)(function))
    except RuntimeError:  # no folder can hold the cache
        return cast(F, numba.njit(nogil=True, **options)(function))


def _dot(one: Float32Array, other: Float32Array) -> np.float32:
    total = np.float32(0.0)
    for index in range(len(one)):
        total += one[index] * other[index]
    return total


# A fixed order of additions would keep the processor from adding several numbers at once.
dot = compiled(_dot, fastmath={"reassoc", "contract"})
"""Return the inner product of two vectors, float32 ``[D]``."""
