"""Trains the candidate generator: codes, two towers, FAISS index, similar items."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec
from feature_repo.encoding import AttributeEncoder, Vocabulary, parts
from feature_repo.workspace import Workspace, fingerprint, read_json, staged_folder, write_json
from pipelines.features.point_in_time import DAY_S, PointInTime, catalogue_columns
from pipelines.ingest.ingest import data_version
from pipelines.training.past_requests import requests_from
from pipelines.training.split import Split, epoch_seconds
from pipelines.training.warm_start import Base
from retrieval.covisitation import similar_items
from retrieval.index import build_index, save_index
from retrieval.towers.context import concatenate
from retrieval.towers.examples import Examples
from retrieval.towers.export import export_item_tower, export_user_tower
from retrieval.towers.model import TowerConfig, TowerShape, TwoTowers
from retrieval.towers.training import Log, Progress, TowerTrainingConfig, item_vectors, train_towers
from serving.recommender.candidates import Shares
from serving.recommender.codec import Codec
from serving.recommender.item_table import ItemTable, build_items
from serving.recommender.recommender import UserTowerSession
from serving.recommender.users import UserReader
from serving.releases.item_files import save_items, with_spare
from serving.releases.release import FORMAT

_QUERIES = 1_000


@dataclass(frozen=True)
class TowerData:
    """What towers are made of: codes, the catalogue, and examples before and after ``split.ranker``."""

    codec: Codec
    items: ItemTable
    training: Examples
    validation: Examples
    met: npt.NDArray[np.bool_]
    """Which items, ``[items]``, had a positive event before ``split.ranker``: the others have no id embedding."""


def train_retrieval(
    workspace: Workspace,
    events: pd.DataFrame,
    split: Split,
    config: TowerTrainingConfig,
    log: Log,
    progress: Progress,
    shares: Shares | None = None,
    shape: TowerShape | None = None,
    base: Base | None = None,
) -> Path:
    """Train towers and write the candidate generator to ``models/retrieval``; a finished one is kept.

    Args:
        workspace: the working folder, features applied.
        events: the whole log in order of time.
        split: the towers learn from positive events before ``split.ranker``; the slice up to
            ``split.calibrate`` stops their training.
        config: training settings.
        log: told each epoch's metrics.
        progress: told each step.
        shares: how many candidates each source may propose.
        shape: sizes and dropout of the towers.
        base: the release to begin from, with its shape; by default untrained towers learn from all
            events.

    Returns:
        the folder.

    Raises:
        NothingNew: ``base`` has learned from all events already.

    """
    final, shares, shape = workspace.models / "retrieval", shares or Shares(), shape or TowerShape()
    shape = base.shape if base else shape
    settings = (
        asdict(config),
        asdict(shape),
        shares.model_dump(),
        *([base.folder.name] if base else []),
    )
    version = fingerprint(FORMAT, data_version(workspace), split.to_dict(), *settings)
    if (final / "report.json").is_file() and read_json(final / "report.json")["version"] == version:
        return final
    data = tower_data(workspace, events, split, progress, base, config.seed)
    towers, report = train_towers(
        tower_builder(data, shape),
        data.training,
        data.validation,
        config,
        workspace.models / "towers",
        version,
        log,
        progress,
        (lambda towers: base.begin(towers, data.codec)) if base else lambda _: None,
    )
    towers = towers.cpu()
    known = events[epoch_seconds(events[c.TIMESTAMP]) < split.ranker]
    with staged_folder(final) as folder:
        index_report = _write(folder, data, towers, known, shares)
        write_json(
            folder / "report.json",
            {
                "version": version,
                "towers": {
                    **report.to_dict(),
                    "validation": f"recall@{report.recall_at} over the whole catalogue",
                },
                "index": index_report,
                "examples": len(data.training),
                "settings": asdict(config),
                "sizes": asdict(towers.config),
                **({"warm_start": base.folder.name} if base else {}),
            },
        )
    return final


def tower_data(
    workspace: Workspace,
    events: pd.DataFrame,
    split: Split,
    progress: Progress,
    base: Base | None = None,
    seed: int = 0,
) -> TowerData:
    """Fit the codes and read the towers' examples, point in time; see ``train_retrieval``."""
    features = PointInTime(workspace)
    time = epoch_seconds(events[c.TIMESTAMP])
    known = events[time < split.ranker]
    learned = base.examples(known, split, seed) if base else known
    codec, items = fit_codec(workspace.spec(), workspace, events, known, features, split, base)
    progress("reading histories point in time", 0, 1)
    later = (
        (time >= split.ranker)
        & (time < split.calibrate)
        & ~events.duplicated([c.USER, c.ITEM]).to_numpy()
    )
    met = np.zeros(len(items), dtype=np.bool_)
    met[codec.items.encode(known.loc[known[c.POSITIVE], c.ITEM].tolist())] = True
    return TowerData(
        codec,
        items,
        examples(codec, features, learned),
        examples(codec, features, events[later]),
        met,
    )


def fit_codec(
    spec: DatasetSpec,
    workspace: Workspace,
    events: pd.DataFrame,
    known: pd.DataFrame,
    features: PointInTime,
    split: Split,
    base: Base | None = None,
) -> tuple[Codec, ItemTable]:
    """Fit vocabularies on what was known when the towers were trained; the catalogue has every item.

    Codes of attributes and categories that ``base`` has keep their meaning, since its weights hang
    on them.
    """
    ids, columns = catalogue_columns(spec, workspace.ingest, events)
    users = sorted(known.loc[known[c.POSITIVE], c.USER].unique())
    old = [
        row
        for row, start in enumerate(columns[c.AVAILABLE_FROM])
        if start is None or start < split.ranker
    ]
    item_attributes = AttributeEncoder.fit(
        spec.item_attributes,
        {name: [columns[name][row] for row in old] for name in spec.item_attributes},
    )
    categories = Vocabulary(())
    if spec.category:
        kind = spec.item_attributes[spec.category]
        categories = Vocabulary.fit(
            part for row in old for part in parts(kind, columns[spec.category][row])
        )
    user_table = _user_attributes(spec, workspace, set(users))
    user_attributes = AttributeEncoder.fit(spec.user_attributes, user_table)
    if base:
        item_attributes = base.codec.item_attributes.grown(item_attributes)
        categories = base.codec.categories.grown(categories)
        user_attributes = base.codec.user_attributes.grown(user_attributes)
    codec = Codec(
        spec, Vocabulary(users), Vocabulary(ids), categories, user_attributes, item_attributes
    )
    end = events[c.TIMESTAMP].max() + pd.Timedelta(days=1)
    _, activity = next(
        iter(features.item_activity(codec, np.array([int(end.timestamp()) // DAY_S])))
    )
    columns |= {name: activity.counts[1:, n].tolist() for n, name in enumerate(codec.item_activity)}
    columns |= {
        c.FIRST_EVENT_AT: activity.first_event_at[1:].tolist(), c.LAST_EVENT_AT: activity.last_event_at[1:].tolist()
    }  # fmt: skip
    return codec, build_items(codec, columns)


def _user_attributes(
    spec: DatasetSpec, workspace: Workspace, users: set[str]
) -> dict[str, list[Any]]:
    if not spec.user_attributes:
        return {}
    table = pq.read_table(workspace.ingest / "users.parquet").to_pylist()
    rows = [row for row in table if row[c.USER] in users]
    return {name: [row[name] for row in rows] for name in spec.user_attributes}


def examples(codec: Codec, features: PointInTime, events: pd.DataFrame) -> Examples:
    """Return the positive events of a log with each user's features just before, through Feast."""
    positive = events[events[c.POSITIVE]]
    requests = requests_from(positive, codec)
    reader = UserReader(codec)
    contexts = [
        reader.context(columns, requests.time[rows])
        for rows, columns in features.users("user_tower_v1", requests.user, requests.time)
    ]
    # The square root keeps a rare purchase from drowning a hundred views.
    weight = np.sqrt(positive[c.WEIGHT].to_numpy(dtype=np.float32))
    return Examples(concatenate(contexts), requests.item, weight)


def tower_builder(data: TowerData, shape: TowerShape) -> Callable[[], TwoTowers]:
    """Return a function that makes untrained towers for a codec and catalogue."""
    codec, items = data.codec, data.items
    config = TowerConfig(
        users=len(codec.users),
        items=len(codec.items),
        user_attributes=codec.user_attributes.table_size,
        item_attributes=codec.item_attributes.table_size,
        user_attribute_width=codec.user_attributes.width,
        user_numbers=len(codec.user_attributes.numeric),
        item_numbers=len(codec.item_attributes.numeric),
        **asdict(shape),
    )
    codes = torch.from_numpy(items.encoded.codes.astype(np.int64))
    numbers = torch.from_numpy(codec.item_attributes.standardise(items.encoded.numbers))
    return lambda: TwoTowers(config, codes, numbers, torch.from_numpy(data.met))


def _write(
    folder: Path, data: TowerData, towers: TwoTowers, known: pd.DataFrame, shares: Shares
) -> dict[str, Any]:
    codec, items = data.codec, data.items
    raw, unit = item_vectors(towers)
    export_user_tower(towers, folder / "user_tower.onnx")
    export_item_tower(towers, folder / "item_tower.onnx")
    save_file(
        {name: value.contiguous() for name, value in towers.state_dict().items()},
        folder / "towers.safetensors",
    )
    np.save(folder / "item_vectors.npy", with_spare(unit))
    np.save(folder / "raw_item_vectors.npy", with_spare(raw))
    session = UserTowerSession((folder / "user_tower.onnx").read_bytes(), raw)
    index, report = build_index(unit[1:], session(data.validation.context[:_QUERIES]))
    save_index(index, folder / "index.faiss")
    positive = known[known[c.POSITIVE]].sort_values(
        [c.USER, c.TIMESTAMP, c.EVENT_ID], kind="stable"
    )
    near, similarity = similar_items(
        positive[c.USER].astype("category").cat.codes.to_numpy(dtype=np.int64),
        codec.items.encode(positive[c.ITEM].tolist()),
        len(items),
    )
    np.save(folder / "neighbours.npy", with_spare(near))
    np.save(folder / "similarities.npy", with_spare(similarity))
    save_items(items, folder)
    write_json(folder / "codec.json", codec.to_dict())
    write_json(folder / "shares.json", json.loads(shares.model_dump_json()))
    return report.to_dict()
