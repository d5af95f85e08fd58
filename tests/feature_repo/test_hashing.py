"""Hashes do not change: they name versions that are stored."""

import os
import subprocess
import sys

from feature_repo.hashing import file_hash, fingerprint


def test_fingerprints_are_stable(tmp_path):
    assert fingerprint("a", {"b": [1, 2.5, None]}) == "7207c7a9ee4430e3"
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint("a", "b") != fingerprint("ab") != fingerprint(["a", "b"])
    script = "from feature_repo.hashing import fingerprint as f; print(f({'x', 'y', 'z'}))"
    seeds = [{**os.environ, "PYTHONHASHSEED": str(seed)} for seed in range(3)]
    found = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
        for env in seeds
    ]
    assert len({run.stdout for run in found}) == 1
    assert all(run.returncode == 0 for run in found)
    (tmp_path / "f").write_bytes(b"abc")
    assert (
        file_hash(tmp_path / "f")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
