"""LightGBM, imported once its OpenMP runtime is loaded."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

__all__ = ["lightgbm"]


def _load_openmp() -> None:
    """Make libgomp.so.1 known to the process before LightGBM asks for it.

    LightGBM's wheel expects the system to have GCC's OpenMP runtime, which a bare Debian has not.
    torch's wheel carries one under the same SONAME; it is loaded from the file, because importing
    torch would cost a server a second and 200 MB.
    """
    try:
        ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        torch = importlib.util.find_spec("torch")
        for folder in (torch.submodule_search_locations or ()) if torch else ():
            library = Path(folder) / "lib" / "libgomp.so.1"
            if library.is_file():
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


_load_openmp()

import lightgbm  # noqa: E402  (needs the library above)
