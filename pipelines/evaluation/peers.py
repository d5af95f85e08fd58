"""Models of other libraries that cannot live beside Feast, so far SASRec of RecTools: files go out, vectors come back.

``make peers`` makes the environment, ``benchmarks/peers/sasrec.py`` is what runs in it. It gets
what the baselines
get: the positive events before a cut, and for each request its user's before it. Settings that were
tried and vectors that were made are kept under ``peers/`` in the working folder, under a name made
of what went out.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import columns as c
from feature_repo.encoding import Floats
from feature_repo.workspace import (
    PROJECT_ROOT,
    Workspace,
    file_hash,
    fingerprint,
    read_json,
    write_json,
)
from pipelines.evaluation.baseline_tuning import Tuned, Validation, interaction_matrix
from pipelines.evaluation.baselines import popularity_bonus
from pipelines.evaluation.replayed_requests import Model, by_scores
from pipelines.training.past_requests import InteractionHistory, Requests
from pipelines.training.split import epoch_seconds
from retrieval.towers.training import Progress
from serving.releases.release import Release

NAME = "sasrec"
PYTHON = PROJECT_ROOT / ".venv-peers" / "bin" / "python"
SCRIPT = PROJECT_ROOT / "benchmarks" / "peers" / "sasrec.py"
CONSTRAINTS = SCRIPT.with_name("constraints.txt")
HOW = "it runs in an environment of its own: 'make peers'"

_COMMON = {"n_blocks": 2, "n_heads": 4, "lr": 1e-3}
GRID: list[dict[str, Any]] = [
    {"n_factors": 64, "dropout_rate": 0.2, "session_max_len": 50, "loss": "softmax", **_COMMON},
    {"n_factors": 128, "dropout_rate": 0.2, "session_max_len": 100, "loss": "softmax", **_COMMON},
    {"n_factors": 128, "dropout_rate": 0.5, "session_max_len": 100, "loss": "softmax", **_COMMON},
    {"n_factors": 128, "dropout_rate": 0.2, "session_max_len": 100, "loss": "gBCE", "n_negatives": 128,
     "gbce_t": 0.75, **_COMMON},
    {"n_factors": 128, "dropout_rate": 0.2, "session_max_len": 200, "loss": "softmax", **_COMMON},
    {"n_factors": 256, "dropout_rate": 0.5, "session_max_len": 100, "loss": "softmax", **_COMMON},
]  # fmt: skip
"""Settings of RecTools' ``SASRecModel``, the cheapest first: time may not suffice for all (gBCE: arXiv 2308.07192)."""

MAX_EPOCHS = 300
LONGEST = 200
"""The newest events of a history that count."""
LARGEST_SOFTMAX = 50_000
"""Items above which settings with a softmax over all of them are left out."""


class PeerFailed(RuntimeError):  # noqa: N818 - said to the user
    """The other environment's program ended without a result; the message says why, or where that is written."""


@dataclass(frozen=True)
class Peer:
    """A fitted peer: float32 ``users`` ``[n, d]`` of the requests, ``items`` ``[N, d]``, ``known`` bool ``[N]``."""

    users: Floats
    items: Floats
    known: npt.NDArray[np.bool_]
    report: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Peer:
        """Return what a run left in its folder."""
        with np.load(folder / "vectors.npz") as arrays:
            return cls(
                arrays["users"], arrays["items"], arrays["known"], read_json(folder / "report.json")
            )

    def model(self, bonus: Floats) -> Model:
        """Return the model that ranks by the product of vectors.

        Args:
            bonus: float32 ``[N]``, added to break ties, which all items are for a user without
                history.

        """
        lowest = np.finfo(np.float32).min
        return by_scores(
            lambda batch: np.where(
                self.known, self.users[batch.rows] @ self.items.T + bonus, lowest
            )
        )


def sasrec(
    workspace: Workspace,
    release: Release,
    events: pd.DataFrame,
    interactions: InteractionHistory,
    requests: Requests,
    minutes: float,
    progress: Progress,
) -> Tuned:
    """Tune SASRec on the validation slice, fit it on all before the test cut, and return it as a model.

    Args:
        workspace: where results are kept.
        release: whose catalogue, rules and split count.
        events: the whole log in order of time.
        interactions: the same log by user.
        requests: all test requests, in the order in which their moments will come.
        minutes: for tuning and the last fit together, about; three times as much is the limit.
        progress: told what the peer does.

    """
    if not PYTHON.is_file():
        return Tuned(left_out={NAME: HOW})
    known = interaction_matrix(
        events[epoch_seconds(events[c.TIMESTAMP]) < release.manifest["split"]["test"]],
        release.codec,
    )
    inputs = workspace.peers / "inputs"
    shutil.rmtree(inputs, ignore_errors=True)
    inputs.mkdir(parents=True)
    try:
        write_inputs(inputs, release, events, interactions, requests)
        peer = run(inputs, workspace.peers / NAME, minutes, progress)
    except PeerFailed as reason:
        return Tuned(left_out={NAME: str(reason)})
    finally:
        shutil.rmtree(inputs)
    settings = {"chosen": peer.report["chosen"], "validation": peer.report["validation"]}
    if peer.report["unfinished"]:
        settings["unfinished"] = peer.report["unfinished"]
    return Tuned({NAME: peer.model(popularity_bonus(known))}, {NAME: settings})


def write_inputs(
    folder: Path,
    release: Release,
    events: pd.DataFrame,
    interactions: InteractionHistory,
    requests: Requests,
) -> None:
    """Write what a peer learns from and is asked for; items are codes, users are numbers."""
    split, items = release.manifest["split"], release.codec.items
    positive = events[events[c.POSITIVE]]
    user, item = (
        positive[c.USER].astype("category").cat.codes.to_numpy(),
        items.encode(positive[c.ITEM].tolist()),
    )
    time = epoch_seconds(positive[c.TIMESTAMP])
    for name in ("choose", "test"):
        rows = (time < split[name]) & (item > 0)
        table = pa.table({"user": user[rows].astype(np.int32), "item": item[rows].astype(np.int32)})
        pq.write_table(table, folder / f"learn_{name}.parquet")
    validation = Validation.of(release, events, interactions)
    allowed = [np.packbits(may, axis=1) for _, may, _ in validation.batches()]
    np.save(
        folder / "allowed_choose.npy",
        np.concatenate([np.zeros((0, -(-len(items) // 8)), np.uint8), *allowed]),
    )
    _write_requests(folder / "requests_choose.parquet", interactions, validation.requests)
    _write_requests(folder / "requests_test.parquet", interactions, requests)
    grid = [
        setting for setting in GRID if setting["loss"] != "softmax" or len(items) <= LARGEST_SOFTMAX
    ]
    write_json(folder / "about.json", {"items": len(items), "grid": grid, "max_epochs": MAX_EPOCHS})


def _write_requests(path: Path, interactions: InteractionHistory, requests: Requests) -> None:
    histories = [
        interactions.positive_items(user, at)
        for user, at in zip(requests.user, requests.time, strict=True)
    ]
    histories = [codes[codes > 0][-LONGEST:] for codes in histories]
    pq.write_table(
        pa.table({"history": pa.array(histories, pa.list_(pa.int32())), "item": requests.item}),
        path,
    )


def run(inputs: Path, kept: Path, minutes: float, progress: Progress) -> Peer:
    """Run the peer on what was written, or return what it made of the same before, in as much time.

    Args:
        inputs: the folder with its inputs.
        kept: where results of earlier runs are and this one's go; those of other data are removed.
        minutes: for tuning and the last fit.
        progress: told each step.

    Raises:
        PeerFailed: it ended without a result, or took three times as long.

    """
    hashes = {path.name: file_hash(path) for path in sorted(inputs.iterdir())}
    asked = {name: hashes.pop(name) for name in ("learn_test.parquet", "requests_test.parquet")}
    tuning = kept / fingerprint(hashes, file_hash(SCRIPT), file_hash(CONSTRAINTS))
    for old in kept.iterdir() if kept.is_dir() else ():
        if old != tuning:
            shutil.rmtree(old)
    result = tuning / fingerprint(asked)
    report = read_json(result / "report.json") if (result / "report.json").is_file() else None
    if report is None or (report["unfinished"] and report["minutes"] < minutes):
        tuning.mkdir(parents=True, exist_ok=True)
        _run(inputs, tuning, result, minutes, progress)
    return Peer.read(result)


def _run(inputs: Path, tuning: Path, result: Path, minutes: float, progress: Progress) -> None:
    folders = (inputs, tuning / "tried.json", result)
    command = [str(part) for part in (PYTHON, "-I", SCRIPT, *folders, "--minutes", minutes)]
    said = tuning / "log.txt"
    with (
        said.open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        late = Timer(180.0 * minutes, process.kill)
        late.start()
        try:
            for line in process.stdout or ():
                what, done, total = line.rstrip("\n").split("\t")
                progress(what, int(done), int(total))
        except BaseException:
            process.kill()
            raise
        finally:
            late.cancel()
    # Lightning turns a SIGTERM into a quiet end.
    if process.returncode or not (result / "report.json").is_file():
        raise PeerFailed(
            f"it failed, or was stopped after {3 * minutes:g} minutes, which the next run goes on from: {said}"
        )
