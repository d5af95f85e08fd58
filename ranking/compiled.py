"""Compiled functions: loops over one request's candidates that NumPy could only do with many passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

from feature_repo.encoding import Floats

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compile a function of arrays and numbers at its first call; the result is kept on disk for later processes.

    Other threads run meanwhile, as they do in NumPy's own loops.
    """
    return _kept(function)


def _kept(function: F, **options: Any) -> F:
    try:
        return cast(F, numba.njit(cache=True, nogil=True, **options)(function))
    except RuntimeError:  # there is no folder to keep anything in, as in a container without a home
        return cast(F, numba.njit(nogil=True, **options)(function))


def _dot(one: Floats, other: Floats) -> np.float32:
    total = np.float32(0.0)
    for place in range(len(one)):
        total += one[place] * other[place]
    return total


# Sums may be taken in another order, without which the processor could not add several numbers at
# once.
dot = _kept(_dot, fastmath={"reassoc", "contract"})
"""Return the inner product of two vectors, float32 ``[D]``."""
