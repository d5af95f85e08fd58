"""Models of other libraries that cannot be installed beside Feast: so far SASRec of RecTools.

``make peers`` makes the environment, ``benchmarks/peers/sasrec.py`` is what runs in it: files go
out, vectors come back. It gets what the baselines get: the positive events before a cut, and for
each request its user's before it. Settings that were tried and vectors that were made are kept
under ``peers/`` in the working folder, under a fingerprint of the inputs.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import columns as c
from feature_repo.arrays import BoolArray, Float32Array
from feature_repo.errors import FunnelError
from feature_repo.files import read_json, write_json
from feature_repo.hashing import file_hash, fingerprint
from feature_repo.progress import Progress
from feature_repo.workspace import PROJECT_ROOT, Workspace
from pipelines.evaluation.baseline_tuning import TunedBaselines, Validation, interaction_matrix
from pipelines.evaluation.baselines import popularity_bonus
from pipelines.evaluation.figures import BaselineSearch
from pipelines.evaluation.held_out import HeldOut
from pipelines.evaluation.replayed_requests import Model, by_scores
from pipelines.training.past_requests import InteractionHistory, Requests
from pipelines.training.split import Split, epoch_seconds

NAME = "sasrec"
PYTHON = PROJECT_ROOT / ".venv-peers" / "bin" / "python"
SCRIPT = PROJECT_ROOT / "benchmarks" / "peers" / "sasrec.py"
CONSTRAINTS = SCRIPT.with_name("constraints.txt")
INSTALL = "it runs in an environment of its own: 'make peers'"

_COMMON = {"n_blocks": 2, "n_heads": 4, "lr": 1e-3}
_GBCE = {"loss": "gBCE", "n_negatives": 128, "gbce_t": 0.75}
GRID: list[dict[str, Any]] = [
    {"n_factors": 64, "dropout_rate": 0.2, "session_max_len": 50, "loss": "softmax", **_COMMON},
    {"n_factors": 128, "dropout_rate": 0.2, "session_max_len": 100, "loss": "softmax", **_COMMON},
    {"n_factors": 128, "dropout_rate": 0.5, "session_max_len": 100, "loss": "softmax", **_COMMON},
    {"n_factors": 128, "dropout_rate": 0.2, "session_max_len": 100, **_GBCE, **_COMMON},
    {"n_factors": 128, "dropout_rate": 0.2, "session_max_len": 200, "loss": "softmax", **_COMMON},
    {"n_factors": 256, "dropout_rate": 0.5, "session_max_len": 100, "loss": "softmax", **_COMMON},
]  # fmt: skip
"""Settings of RecTools' ``SASRecModel``, the cheapest first, since there may not be time for all.

gBCE: Petrov and Macdonald, arXiv 2308.07192.
"""

MAX_EPOCHS = 300
MAX_HISTORY = 200
"""The newest events of a history that count."""
MAX_SOFTMAX_ITEMS = 50_000
"""Items above which settings with a softmax over all of them are left out."""


class PeerFailed(FunnelError):  # noqa: N818 - said to the user
    """The other environment's program gave no result; the message says why, or where to look."""


@dataclass(frozen=True)
class Peer:
    """A fitted peer.

    Attributes:
        users: vectors of the requests' users, float32 ``[n, d]``.
        items: vectors of the items, float32 ``[N, d]``.
        known: which items it has learned of, bool ``[N]``.
        report: what it says of its training.

    """

    users: Float32Array
    items: Float32Array
    known: BoolArray
    report: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Peer:
        """Return what a run left in its folder."""
        with np.load(folder / "vectors.npz") as arrays:
            return cls(
                arrays["users"], arrays["items"], arrays["known"], read_json(folder / "report.json")
            )

    def model(self, bonus: Float32Array) -> Model:
        """Return the model that ranks by the product of vectors.

        Args:
            bonus: float32 ``[N]``, added to break ties; for a user without history all items tie.

        """
        lowest = np.finfo(np.float32).min
        return by_scores(
            lambda batch: np.where(
                self.known, self.users[batch.rows] @ self.items.T + bonus, lowest
            )
        )

    def search(self) -> BaselineSearch:
        """Return how it was tuned."""
        return BaselineSearch(
            chosen=self.report["chosen"],
            validation=self.report["validation"],
            unfinished=self.report["unfinished"],
        )


def sasrec(
    workspace: Workspace, held_out: HeldOut, minutes: float, progress: Progress
) -> TunedBaselines:
    """Tune SASRec on the selection part, fit it on all before the test cut; return it as a model.

    Args:
        workspace: where results are kept.
        held_out: the test events; their requests are replayed in this order.
        minutes: for tuning and the last fit together, about; the limit is three times as long.
        progress: progress callback.

    """
    if not PYTHON.is_file():
        return TunedBaselines(left_out={NAME: INSTALL})

    inputs = workspace.peers / "inputs"
    shutil.rmtree(inputs, ignore_errors=True)
    inputs.mkdir(parents=True)
    try:
        write_inputs(inputs, held_out)
        peer = run(inputs, workspace.peers / NAME, minutes, progress)
    except PeerFailed as reason:
        return TunedBaselines(left_out={NAME: str(reason)})
    finally:
        shutil.rmtree(inputs)

    known = interaction_matrix(held_out.known, held_out.release.codec)
    model = peer.model(popularity_bonus(known))
    return TunedBaselines(models={NAME: model}, searches={NAME: peer.search()})


def write_inputs(folder: Path, held_out: HeldOut) -> None:
    """Write what a peer learns from and is asked for; items are codes, users are numbers."""
    release = held_out.release
    items = len(release.codec.items)
    _write_events(folder, held_out)

    validation = Validation.of(release, held_out.events, held_out.interactions)
    bits = [np.packbits(allowed, axis=1) for _, allowed, _ in validation.batches()]
    no_bits = np.zeros((0, -(-items // 8)), np.uint8)
    np.save(folder / "allowed_choose.npy", np.concatenate([no_bits, *bits]))

    interactions = held_out.interactions
    _write_requests(folder / "requests_choose.parquet", interactions, validation.requests)
    _write_requests(folder / "requests_test.parquet", interactions, held_out.requests)

    grid = [
        setting for setting in GRID if setting["loss"] != "softmax" or items <= MAX_SOFTMAX_ITEMS
    ]
    write_json(folder / "about.json", {"items": items, "grid": grid, "max_epochs": MAX_EPOCHS})


def _write_events(folder: Path, held_out: HeldOut) -> None:
    """Write ``learn_choose.parquet`` and ``learn_test.parquet``, from which a peer learns.

    They have the positive events before the selection part and before the test part. Items that
    the release does not know are left out.
    """
    split = Split.from_dict(held_out.release.manifest.split)
    positive = held_out.events[held_out.events[c.POSITIVE]]
    # Users' numbers, item codes (0: unknown) and epoch seconds, all [n].
    user = positive[c.USER].astype("category").cat.codes.to_numpy()
    item = held_out.release.codec.items.encode(positive[c.ITEM].tolist())
    time = epoch_seconds(positive[c.TIMESTAMP])
    for name, cut in (("choose", split.selection), ("test", split.test)):
        kept = (time < cut) & (item > 0)
        table = pa.table({"user": user[kept].astype(np.int32), "item": item[kept].astype(np.int32)})
        pq.write_table(table, folder / f"learn_{name}.parquet")


def _write_requests(path: Path, interactions: InteractionHistory, requests: Requests) -> None:
    """Write each request's history, oldest first, and its right item."""
    pairs = zip(requests.user, requests.time, strict=True)
    histories = [interactions.positive_items(user, time) for user, time in pairs]
    histories = [codes[codes > 0][-MAX_HISTORY:] for codes in histories]
    history = pa.array(histories, pa.list_(pa.int32()))
    pq.write_table(pa.table({"history": history, "item": requests.item}), path)


def run(inputs: Path, results: Path, minutes: float, progress: Progress) -> Peer:
    """Run the peer on its inputs, or return an earlier result of equal inputs and as much time.

    Args:
        inputs: the folder with its inputs.
        results: where results are kept; those of other data are removed.
        minutes: for tuning and the last fit.
        progress: progress callback.

    Raises:
        PeerFailed: it ended without a result, or took three times as long.

    """
    hashes = {path.name: file_hash(path) for path in sorted(inputs.iterdir())}
    test_hashes = {
        name: hashes.pop(name) for name in ("learn_test.parquet", "requests_test.parquet")
    }
    tuning = results / fingerprint(hashes, file_hash(SCRIPT), file_hash(CONSTRAINTS))
    for old in results.iterdir() if results.is_dir() else ():
        if old != tuning:
            shutil.rmtree(old)

    result = tuning / fingerprint(test_hashes)
    report = read_json(result / "report.json") if (result / "report.json").is_file() else None
    if report is None or (report["unfinished"] and report["minutes"] < minutes):
        tuning.mkdir(parents=True, exist_ok=True)
        arguments = [str(inputs), str(tuning / "tried.json"), str(result)]
        _run_script([*arguments, "--minutes", str(minutes)], tuning / "log.txt", minutes, progress)
        if not (result / "report.json").is_file():
            raise _failure(minutes, tuning / "log.txt")
    return Peer.read(result)


def _run_script(arguments: list[str], log_path: Path, minutes: float, progress: Progress) -> None:
    """Run the peer's script in its environment; it prints tab-separated progress."""
    command = [str(PYTHON), "-I", str(SCRIPT), *arguments]
    with (
        log_path.open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        timeout = Timer(180.0 * minutes, process.kill)
        timeout.start()
        try:
            for line in process.stdout or ():
                description, done, total = line.rstrip("\n").split("\t")
                progress(description, int(done), int(total))
        except BaseException:
            process.kill()
            raise
        finally:
            timeout.cancel()
    # Lightning ends without an error after a SIGTERM, so the caller looks for the result as well.
    if process.returncode:
        raise _failure(minutes, log_path)


def _failure(minutes: float, log_path: Path) -> PeerFailed:
    return PeerFailed(
        f"it failed, or was stopped after {3 * minutes:g} minutes; "
        f"the next run continues where it stopped. Its log: {log_path}"
    )
