"""Starts the Spark session, with settings and a log that suit a command line."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from pyspark.sql import SparkSession

from feature_repo.files import write_atomically
from feature_repo.settings import read_settings
from feature_repo.workspace import default_root
from pipelines.features.java import java_home, write_script
from pipelines.features.spark_scratch import own_scratch, remove_dead_scratch

_Setting = bool | float | int | str | None

# PySpark's process that opens the state of a stream prints what it does, with addresses of objects.
_PYTHON_SCRIPT = """#!/bin/sh
# Written by Funnel: drops the standard output of one of PySpark's processes.
case "$*" in *transform_with_state_driver_worker*) exec {python} "$@" >/dev/null ;; esac
exec {python} "$@"
"""

_SHORT_JOB = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
"""Java without its optimizing compiler, which costs a short job more than it saves."""

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


def spark_session(
    app: str,
    master: str | None = None,
    work: Path | None = None,
    extra: dict[str, str] | None = None,
    *,
    short: bool = False,
) -> SparkSession:
    """Return this process's Spark session; start it if there is none.

    Args:
        app: the application's name, shown by Spark.
        master: a Spark master URL; by default ``FUNNEL_SPARK_MASTER``, else ``local[*]``.
        work: the working folder; scratch files go to ``spark/`` below it. By default the current
            one.
        extra: more settings, which override the usual ones.
        short: the job takes a minute or two; Java starts so that it ends soonest.

    Environment: ``FUNNEL_SPARK_DRIVER_MEMORY`` (default ``3g``). On a cluster ``PYSPARK_PYTHON``
    names the workers' Python; local workers always run the interpreter of this process.

    Raises:
        JavaMissing: Spark finds no Java that it can run on.

    """
    master = master or read_settings().spark_master or "local[*]"
    work = (work or default_root()).resolve()
    if SparkSession.getActiveSession() is None:
        os.environ["JAVA_HOME"] = str(java_home(work))
    settings = _settings(work, short=short)
    remove_dead_scratch(work)
    if is_local(master):
        settings |= _local_settings(work)
        os.environ["PYSPARK_PYTHON"] = str(_worker_python(work))
        # Otherwise Spark resolves its own host name, which fails or warns on many laptops.
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    else:
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    settings |= extra or {}
    return SparkSession.Builder().appName(app).master(master).config(map=settings).getOrCreate()


def is_local(master: str | None = None) -> bool:
    """Return whether Spark runs in this process's Java: ``master`` as for ``spark_session``."""
    return (master or read_settings().spark_master or "local").startswith("local")


def _worker_python(work: Path) -> Path:
    """Return a script below ``work`` that starts this process's Python."""
    script = work / "spark" / "python"
    write_script(script, _PYTHON_SCRIPT.format(python=shlex.quote(sys.executable)))
    return script


def _settings(work: Path, *, short: bool) -> dict[str, _Setting]:
    logging = work / "spark" / "log4j2.properties"
    write_atomically(logging, _LOGGING)
    java = f'-Dlog4j2.configurationFile="{logging.as_uri()}"'
    executors = {"spark.executor.extraJavaOptions": _SHORT_JOB} if short else {}
    return {
        **executors,
        "spark.driver.memory": read_settings().spark_driver_memory,
        "spark.driver.extraJavaOptions": f"{java} {_SHORT_JOB}" if short else java,
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
        "spark.local.dir": str(own_scratch(work)),
        "spark.sql.shuffle.partitions": "4",
    }
