"""Reads text files, packed or not, and says which of their lines are damaged.

A line ends with LF, CRLF or CR.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_UNDECODABLE = re.compile("[\ud800-\udfff]")
_BOM = b"\xef\xbb\xbf"

BadLines = list[tuple[int, str, str]]
"""Line number, reason and text of each line that is not a row."""


@contextmanager
def open_unpacked(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, unpacked, behind its byte order mark."""
    unpack: Any = gzip.open if path.suffix == ".gz" else open
    with unpack(path, "rb") as file:
        if file.read(len(_BOM)) != _BOM:
            file.seek(0)
        yield file


def read_text(path: Path, encoding: str) -> tuple[str, dict[int, str]]:
    """Return a file's text with LF line ends, and the problem of each damaged line by number."""
    with open_unpacked(path) as file:
        data = file.read()
    try:
        text = data.decode(encoding)
        decodable = True
    except UnicodeDecodeError:
        text = data.decode(encoding, errors="surrogateescape")
        decodable = False
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if decodable and "\0" not in text:
        return text, {}
    damaged = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if _UNDECODABLE.search(line):
            damaged[number] = f"not valid {encoding}"
        elif "\0" in line:
            damaged[number] = "broken line: NUL byte"
    return text, damaged


def printable(text: str) -> str:
    """Return the text of a bad line as valid UTF-8 without NUL."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\0", "\\0")
