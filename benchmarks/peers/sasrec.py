"""SASRec (Kang and McAuley, ICDM 2018) as the library RecTools has it, for ``funnel evaluate``.

RecTools needs NumPy 1, Feast NumPy 2: this file runs in an environment of its own (``make peers``),
imports nothing of Funnel, and exchanges files with ``pipelines/evaluation/peers.py``:

    .venv-peers/bin/python -I benchmarks/peers/sasrec.py INPUTS TRIED RESULT --minutes 20

It tunes a grid on the validation requests, fits the best setting again on everything before the
test cut for as many epochs, and writes a vector for each test request and each item. Standard
output has lines of progress: what is done, how many steps, of how many, with tabs between.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pytorch_lightning import seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

Histories = Sequence[npt.NDArray[np.int32]]
Floats = npt.NDArray[np.float32]

K = 10
PATIENCE = 5
MIN_STEPS = 50
"""Least number of gradient steps between two validations, rounded to whole epochs."""
TUNING_SHARE, SETTING_SHARE = 0.75, 0.25
"""Shares of the time for all tuning and for one setting. The second also bounds the last fit."""
LARGEST = 60_000_000
"""Numbers, at most, in what a step compares with: bounds its batch."""
_PART = 4_096


@dataclass(frozen=True)
class Vectors:
    """The vectors of users and items, whose dot products are the scores.

    ``users`` is float32 ``[n, d]`` and ``items`` float32 ``[N, d]``. ``known``, bool ``[N]``, marks
    the items that the model knows.
    """

    users: Floats
    items: Floats
    known: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Inputs:
    """What ``pipelines/evaluation/peers.py`` wrote."""

    folder: Path

    def about(self) -> dict[str, Any]:
        """Return the number of items, the grid of settings and the largest number of epochs.

        The number of items includes item 0, which stands for no item.
        """
        return dict(json.loads((self.folder / "about.json").read_text(encoding="utf-8")))

    def learned(self, name: str) -> pd.DataFrame:
        """Return the interactions before a cut, oldest first: ``user`` and ``item``."""
        return pd.read_parquet(self.folder / f"learn_{name}.parquet")

    def requests(self, name: str) -> pd.DataFrame:
        """Return requests: ``history``, oldest first, and ``item``, the wanted one."""
        return pd.read_parquet(self.folder / f"requests_{name}.parquet")

    def allowed(self) -> npt.NDArray[np.uint8]:
        """Return what each validation request may be shown, a bit an item, uint8 ``[n, N / 8]``."""
        return np.asarray(np.load(self.folder / "allowed_choose.npy"), dtype=np.uint8)


def dataset(user: npt.NDArray[Any], item: npt.NDArray[Any]) -> Dataset:
    """Return interactions in RecTools' form.

    Their places stand for their times, which may be equal.
    """
    times = pd.to_datetime(np.arange(len(item)), unit="us")
    columns = {Columns.User: user, Columns.Item: item, Columns.Weight: 1.0, Columns.Datetime: times}
    return Dataset.construct(pd.DataFrame(columns))


def build(setting: dict[str, Any], items: int) -> SASRecModel:
    """Return a model that is not fitted yet."""
    seed_everything(0)
    # For every place of every sequence: a logit of each item, or the vectors of the sampled ones.
    width = (
        items
        if setting["loss"] == "softmax"
        else (setting["n_negatives"] + 1) * setting["n_factors"]
    )
    batch = max(1, min(128, LARGEST // (width * setting["session_max_len"])))
    return SASRecModel(**setting, batch_size=batch)


def encode(model: SASRecModel, histories: Histories, items: int) -> Vectors:
    """Return the vectors of histories and items; without any known item, a user's is zero.

    Each history is a user of its own to RecTools. The vectors are those of which its ``recommend``
    takes products.
    """
    preparator = model.data_preparator
    inside, codes = (
        preparator.get_known_items_sorted_internal_ids(),
        preparator.get_known_item_ids().astype(np.int64),
    )
    known = np.isin(np.arange(items), codes)
    of_users, of_items = (
        np.zeros((rows, model.n_factors), np.float32) for rows in (len(histories), items)
    )
    for start in range(0, len(histories), _PART):
        part = [history[known[history]] for history in histories[start : start + _PART]]
        request = np.repeat(np.arange(start, start + len(part)), [len(history) for history in part])
        if len(request):
            data = preparator.transform_dataset_u2i(
                dataset(request, np.concatenate(part)), np.unique(request)
            )
            loader = preparator.get_dataloader_recommend(data, model.recommend_batch_size)
            users, vectors = model.lightning_model._get_user_item_embeddings(loader, None)
            of_users[data.user_id_map.external_ids] = users.numpy()
            of_items[codes] = vectors.cpu().numpy()[inside]
    return Vectors(of_users, of_items, known)


def check(model: SASRecModel, histories: Histories, vectors: Vectors) -> None:
    """Compare the scores of some requests with RecTools' own.

    Raises:
        RuntimeError: the best items by our vectors are not those that it recommends.

    """
    rows = [row for row, history in enumerate(histories) if vectors.known[history].any()][:20]
    if not rows:
        return
    past = [histories[row] for row in rows]
    data = dataset(np.repeat(rows, [len(history) for history in past]), np.concatenate(past))
    k = min(K, int(vectors.known.sum()))
    theirs = model.recommend(users=rows, dataset=data, k=k, filter_viewed=False)
    for row, of in theirs.groupby(Columns.User):
        ours = np.where(vectors.known, vectors.items @ vectors.users[row], -np.inf)
        if not np.allclose(
            ours[of[Columns.Item].to_numpy()], -np.sort(-ours)[:k], rtol=1e-3, atol=1e-4
        ):
            raise RuntimeError(
                f"the vectors of request {row} give another order than RecTools' recommend"
            )


def ndcg(
    vectors: Vectors, popularity: Floats, wanted: npt.NDArray[Any], allowed: npt.NDArray[np.uint8]
) -> float:
    """Return the mean NDCG@10 of requests with one relevant item each.

    The items are ranked as ``funnel evaluate`` ranks them.
    """
    gains, order = np.zeros(len(wanted)), np.arange(len(vectors.known))
    for start in range(0, len(wanted), 128):
        rows, right = slice(start, start + 128), wanted[start : start + 128, None]
        may = np.unpackbits(allowed[rows], axis=1, count=len(order)).astype(np.bool_)
        scores = vectors.users[rows] @ vectors.items.T + popularity
        scores[:, ~vectors.known] = np.finfo(np.float32).min
        mine = np.take_along_axis(scores, right, axis=1)
        place = (((scores > mine) | ((scores == mine) & (order < right))) & may).sum(axis=1)
        found = np.take_along_axis(may, right, axis=1)[:, 0] & (place < K)
        gains[rows] = np.where(found, 1.0 / np.log2(place + 2.0), 0.0)
    return float(gains.mean()) if len(gains) else 0.0


class Tuning:
    """The settings of a grid, each fitted until validation no longer gains.

    What is done is kept in a file.
    """

    def __init__(self, inputs: Inputs, tried: Path, minutes: float) -> None:
        self._about, self._file, self._minutes = inputs.about(), tried, minutes
        self.items: int = self._about["items"]
        learned, requests = inputs.learned("choose"), inputs.requests("choose")
        self._data = dataset(learned["user"].to_numpy(), learned["item"].to_numpy())
        self._sequences = learned["user"].nunique()
        counts = np.bincount(learned["item"], minlength=self.items)
        self._popularity = (1e-6 * counts / max(counts.max(), 1)).astype(np.float32)
        self._histories, self._wanted = list(requests["history"]), requests["item"].to_numpy()
        self._allowed = inputs.allowed()
        known = json.loads(tried.read_text(encoding="utf-8")) if tried.is_file() else []
        # One that had no time to finish is worth another try only with more time.
        self.tried: list[dict[str, Any]] = [
            of for of in known if not of["cut"] or of["minutes"] >= minutes
        ]

    def run(self) -> int:
        """Try at least one setting, more while time is left; return how many did not finish."""
        grid = self._about["grid"]
        for number, setting in enumerate(grid):
            left = TUNING_SHARE * 60.0 * self._minutes - sum(of["seconds"] for of in self.tried)
            if self._found(setting) is None and (left > 0 or not self.tried):
                seconds = min(left, SETTING_SHARE * 60.0 * self._minutes)
                told = self._try(setting, seconds, number, len(grid))
                self.tried.append({**setting, **told, "minutes": self._minutes})
                write_json(self._file, self.tried)
        return sum(found is None or found["cut"] for found in map(self._found, grid))

    def chosen(self) -> tuple[dict[str, Any], int]:
        """Return the best setting and its number of epochs."""
        best = max(self.tried, key=lambda of: of["ndcg@10"])
        return next(
            setting for setting in self._about["grid"] if self._found(setting) == best
        ), best["epochs"]

    def _found(self, setting: dict[str, Any]) -> dict[str, Any] | None:
        return next((of for of in self.tried if setting.items() <= of.items()), None)

    def _try(
        self, setting: dict[str, Any], seconds: float, number: int, settings: int
    ) -> dict[str, Any]:
        begin, best, epochs, cut = time.monotonic(), -1.0, 0, False
        model = build(setting, self.items)
        every = -(-MIN_STEPS * model.batch_size // max(self._sequences, 1))
        for epoch in range(every, max(self._about["max_epochs"], every) + 1, every):
            tell(f"tuning sasrec, epoch {epoch}", number, settings)
            model.fit_partial(self._data, min_epochs=every, max_epochs=every)
            vectors = encode(model, self._histories, self.items)
            score = ndcg(vectors, self._popularity, self._wanted, self._allowed)
            if score > best:
                best, epochs = score, epoch
            elif epoch - epochs >= PATIENCE * every:
                break
            if cut := time.monotonic() - begin > seconds:
                break
        return {"epochs": epochs, "ndcg@10": best, "seconds": time.monotonic() - begin, "cut": cut}


def run(inputs: Inputs, tried: Path, result: Path, minutes: float) -> None:
    """Tune, fit and write ``vectors.npz`` and, last, ``report.json`` into ``result``."""
    tuning = Tuning(inputs, tried, minutes)
    unfinished = tuning.run()
    setting, epochs = tuning.chosen()
    learned, histories = inputs.learned("test"), list(inputs.requests("test")["history"])
    data, model = (
        dataset(learned["user"].to_numpy(), learned["item"].to_numpy()),
        build(setting, tuning.items),
    )
    for epoch in range(epochs):
        tell("fitting sasrec", epoch, epochs)
        model.fit_partial(data, min_epochs=1, max_epochs=1)
    vectors = encode(model, histories, tuning.items)
    check(model, histories, vectors)
    result.mkdir(parents=True, exist_ok=True)
    np.savez(result / "vectors.npz", users=vectors.users, items=vectors.items, known=vectors.known)
    report = {"chosen": {**setting, "epochs": epochs}, "validation": tuning.tried}
    write_json(result / "report.json", {**report, "unfinished": unfinished, "minutes": minutes})


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one step."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    os.replace(temporary, path)


def tell(what: str, done: int, total: int) -> None:
    """Write a line of progress."""
    _progress.write(f"{what}\t{done}\t{total}\n")
    _progress.flush()


if __name__ == "__main__":
    _progress, sys.stdout = sys.stdout, sys.stderr  # what libraries say is for the log
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description="SASRec of RecTools for `funnel evaluate`")
    for place in ("inputs", "tried", "result"):
        parser.add_argument(place, type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    given = parser.parse_args()
    run(Inputs(given.inputs), given.tried, given.result, given.minutes)
