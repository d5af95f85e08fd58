"""A whole release of forty items, built from arrays.

Untrained towers, everything else as in production.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec
from feature_repo.declarations.built_in import counts_of
from feature_repo.declarations.feast_objects import build
from feature_repo.encoding import AttributeEncoder, Vocabulary
from feature_repo.files import read_json, write_atomically, write_json
from feature_repo.stores.feature_store import apply, feature_store
from feature_repo.workspace import Workspace
from pipelines.training.reports import generator_id
from ranking.config import RankerConfig
from ranking.data import RankingData
from ranking.row_schema import RowSchema
from ranking.training.train_rankers import VALIDATION, RankerSets, train_rankers
from retrieval.covisitation import similar_items
from retrieval.index import build_index, save_index
from retrieval.towers.evaluation import item_vectors
from retrieval.towers.export import export_item_tower, export_user_tower
from retrieval.towers.model import TowerConfig, TwoTowers
from serving.recommender.candidates import CandidateQuota
from serving.recommender.codec import Codec
from serving.recommender.filters import FilterRules
from serving.recommender.item_table import ItemTable, build_items
from serving.recommender.users import UserBatch
from serving.releases.item_files import save_items, with_spare
from serving.releases.manifest import MANIFEST, Provenance, write_manifest
from serving.releases.release import Release, load_release

ITEMS = 40
NOW = 1_700_000_000.0
DAY = 86_400.0
GENRES = ["War", "Drama", "Comedy", "Horror"]
TAGS = [f"tag{n}" for n in range(12)]
QUOTA = CandidateQuota(two_tower=12, similar=6, popular=4, trending=3, new=3)
PROVENANCE = Provenance(
    data_version="d1", shift_s=0, split={"test": NOW}, code_version="0", created_at="then"
)

# The attributes and types are in no alphabetical order, so that whoever loses the order is found
# out.
SPEC = DatasetSpec.model_validate(
    {
        "name": "tiny",
        "events": {
            "path": "events.csv",
            "user": "u",
            "item": "i",
            "timestamp": "t",
            "type": "e",
            "value": "v",
            "types": {
                "view": {"positive": True},
                "buy": {"positive": True, "weight": 3.0},
                "hide": {"weight": 0.0},
            },
        },
        "users": {
            "path": "users.csv",
            "key": "u",
            "attributes": {"plan": "categorical", "age": "numeric"},
        },
        "items": {
            "path": "items.csv",
            "key": "i",
            "attributes": {
                "title": "text",
                "tags": "multi_categorical",
                "price": "numeric",
                "genre": "categorical",
                "format": "categorical",
            },
            "title": "title",
            "category": "genre",
        },
    }
)


@dataclass(frozen=True, repr=False)  # a failing test would print all of it
class Tiny:
    """The loaded release and what it was made from."""

    folder: Path
    release: Release
    towers: TwoTowers
    codec: Codec
    items: ItemTable

    def users(
        self, names: list[str], time: float | np.ndarray = NOW, **columns: list[Any]
    ) -> UserBatch:
        """Return a batch of users; without ``columns`` nothing is known of them."""
        codec, n = self.codec, len(names)
        known = [
            c.HISTORY_ITEMS,
            c.HISTORY_TIMES,
            *codec.user_counts,
            c.FIRST_EVENT_AT,
            c.LAST_EVENT_AT,
        ]
        rows = {c.USER: names, **{name: [None] * n for name in known}, **columns}
        return self.release.reader.read(
            rows, np.broadcast_to(np.asarray(time, dtype=np.float64), n).copy()
        )

    def clickers(self, n: int = 6, time: float | np.ndarray = NOW) -> UserBatch:
        """Return users who have clicked this and that; the first has clicked nothing."""
        generator = np.random.default_rng(4)
        history = [
            [item_id(code) for code in generator.permutation(ITEMS)[: 3 * row] + 1]
            for row in range(n)
        ]
        ages = [
            [NOW - DAY * (len(items) - place) for place in range(len(items))] for items in history
        ]
        return self.users(
            [f"u{row}" for row in range(n)],
            time,
            history_item_ids=history,
            history_timestamps=ages,
            plan=["free", "paid", None] * (n // 3),
            age=[None, 20.0, 40.0] * (n // 3),
            seen_view=[items[:4] for items in history],
            category_names=[GENRES[:2]] * n,
            category_shares=[[0.75, 0.25]] * n,
        )


def item_id(code: int) -> str:
    return f"i{code}"


def item_columns(codec: Codec, seed: int = 0) -> dict[str, list[Any]]:
    """Return attributes and counts of all items; two of them are gone, one has not come yet."""
    generator = np.random.default_rng(seed)
    columns: dict[str, list[Any]] = {
        "title": [f"The {generator.choice(['long', 'short', 'last'])} story" for _ in range(ITEMS)],
        "tags": [
            generator.permutation(TAGS)[: generator.integers(0, 10)].tolist() for _ in range(ITEMS)
        ],
        "price": [
            None if n % 13 == 5 else round(float(generator.uniform(1, 50)), 2) for n in range(ITEMS)
        ],
        "genre": [None if n % 11 == 7 else str(generator.choice(GENRES)) for n in range(ITEMS)],
        "format": [str(generator.choice(["print", "audio"])) for _ in range(ITEMS)],
        c.AVAILABLE_FROM: [NOW + 100.0 if n == 3 else NOW - DAY * (n + 1) for n in range(ITEMS)],
        c.AVAILABLE_UNTIL: [NOW - 1.0 if n in (5, 6) else None for n in range(ITEMS)],
    }
    for name in codec.item_activity:
        columns[name] = [float(value) for value in generator.poisson(3.0, ITEMS)]
    columns[c.TREND] = [float(value) for value in generator.normal(size=ITEMS)]
    columns[c.FIRST_EVENT_AT] = [NOW - 50 * DAY] * (ITEMS - 1) + [None]
    columns[c.LAST_EVENT_AT] = [NOW - 2 * DAY] * (ITEMS - 1) + [None]
    return columns


def tiny_codec() -> Codec:
    bare = AttributeEncoder({}, {}, {})
    draft = Codec(
        SPEC, Vocabulary(()), Vocabulary(()), Vocabulary(()), bare, bare, *counts_of(SPEC)
    )
    columns = item_columns(draft)
    user_columns = {"plan": ["free", "paid", "free"], "age": [20.0, 40.0, np.nan]}
    return Codec(
        SPEC,
        Vocabulary([f"u{n}" for n in range(4)]),
        Vocabulary([item_id(code) for code in range(1, ITEMS + 1)]),
        Vocabulary.fit(genre for genre in columns["genre"] if genre),
        AttributeEncoder.fit(SPEC.user_attributes, user_columns),
        AttributeEncoder.fit(
            SPEC.item_attributes, {n: _nan(columns[n]) for n in SPEC.item_attributes}
        ),
        *counts_of(SPEC),
    )


def _nan(values: list[Any]) -> list[Any]:
    numbers = any(isinstance(value, float) for value in values)
    return [np.nan if value is None and numbers else value for value in values]


def build_towers(codec: Codec, items: ItemTable, seed: int) -> TwoTowers:
    torch.manual_seed(seed)
    config = TowerConfig(
        users=len(codec.users),
        items=len(codec.items),
        user_attributes=codec.user_attributes.table_size,
        item_attributes=codec.item_attributes.table_size,
        user_attribute_width=codec.user_attributes.width,
        user_numbers=len(codec.user_attributes.numeric),
        item_numbers=len(codec.item_attributes.numeric),
        dimension=16,
        hidden=32,
        heads=2,
    )
    codes = torch.from_numpy(items.encoded.codes.astype(np.int64))
    numbers = torch.from_numpy(codec.item_attributes.standardise(items.encoded.numbers))
    return TwoTowers(config, codes, numbers, torch.ones(len(codec.items), dtype=torch.bool)).eval()


def random_rows(
    codec: Codec, seed: int, kinds: tuple[str, ...] = ("popularity", "logistic")
) -> tuple[Any, ...]:
    """Return ranking rows without meaning, their schema and settings."""
    types = codec.spec.events.types
    schema = RowSchema(
        codec.numeric,
        tuple(codec.categorical),
        tuple(codec.categorical.values()),
        tuple(types),
        tuple(kind.weight for kind in types.values()),
    )
    generator = np.random.default_rng(seed)
    n = 300
    numeric = generator.normal(size=(n, len(schema.numeric))).astype(np.float32)
    categorical = generator.integers(0, schema.cardinalities, (n, len(schema.categorical))).astype(
        np.int32
    )
    chance = 1 / (1 + np.exp(1.0 - numeric[:, :1]))  # the towers' score is what decides
    labels = (generator.random((n, len(types))) < chance).astype(np.float32)
    data = RankingData(
        numeric, categorical, labels, np.repeat(np.arange(n // 10, dtype=np.int64), 10)
    )
    return data, schema, RankerConfig(kinds=kinds)


def write_release(
    folder: Path,
    rules: FilterRules | None = None,
    seed: int = 0,
    catalogue: tuple[Codec, ItemTable] | None = None,
) -> tuple[TwoTowers, Codec, ItemTable]:
    """Write everything that a release has into ``folder``, its manifest last.

    ``catalogue``: another one of as many items.
    """
    codec = catalogue[0] if catalogue else tiny_codec()
    items = catalogue[1] if catalogue else build_items(codec, item_columns(codec))
    towers = build_towers(codec, items, seed)
    raw, unit = item_vectors(towers)
    folder.mkdir(parents=True)
    export_user_tower(towers, folder / "user_tower.onnx")
    export_item_tower(towers, folder / "item_tower.onnx")
    np.save(folder / "item_vectors.npy", with_spare(unit))
    np.save(folder / "raw_item_vectors.npy", with_spare(raw))
    save_index(build_index(unit[1:], unit[1:])[0], folder / "index.faiss")
    generator = np.random.default_rng(2)
    users = np.sort(generator.integers(0, 30, 300))
    near, similarity = similar_items(
        users, generator.integers(1, ITEMS, 300).astype(np.int32), len(items), k=10
    )
    np.save(folder / "neighbours.npy", with_spare(near))
    np.save(folder / "similarities.npy", with_spare(similarity))
    save_items(items, folder)
    write_json(folder / "codec.json", codec.to_dict())
    write_json(folder / "shares.json", QUOTA.model_dump())
    write_json(folder / "filters.json", json.loads((rules or FilterRules()).model_dump_json()))
    data, schema, config = random_rows(codec, 1)
    rankers = folder.parent / f".rankers-{folder.name}"
    train_rankers(RankerSets(data, data, data, schema), rankers, config, lambda *_: None)
    (rankers / "logistic" / VALIDATION).unlink()
    (rankers / "logistic").rename(folder / "ranker")
    write_manifest(folder, PROVENANCE)
    return towers, codec, items


def write_trained(root: Path) -> Workspace:
    """Make a workspace of the tiny release's models, without a release; features registered."""
    workspace, models = Workspace(root), root / "models"
    write_release(models / "retrieval")
    (models / "ranking").mkdir()
    (models / "retrieval" / "ranker").rename(models / "ranking" / "logistic")
    for name in (MANIFEST, "filters.json"):
        (models / "retrieval" / name).unlink()
    write_json(models / "retrieval" / "report.json", {"recall": 0.5})
    write_json(models / "split.json", PROVENANCE.split)
    version = read_json(models / "ranking" / "logistic" / MANIFEST)["report"]["version"]
    report = {
        "best": "logistic",
        "kinds": {"logistic": {"version": version}},
        "trained_on": generator_id(models),
    }
    write_json(models / "ranking" / "report.json", report)
    write_json(root / "ingest" / "manifest.json", {"data_version": "d1", "shift_s": 0})
    (root / "ingest" / "dataset.json").write_text(SPEC.model_dump_json())
    feature_store(workspace).apply(build(SPEC, root / "features"))
    return workspace


def register(workspace: Workspace) -> None:
    """Make a working folder that of the tiny release's data set, with its features registered."""
    write_atomically(workspace.ingest / "dataset.json", SPEC.model_dump_json())
    apply(feature_store(workspace), workspace)


def build_tiny(parent: Path, rules: FilterRules | None = None) -> Tiny:
    folder = parent / "tiny"
    towers, codec, items = write_release(folder, rules)
    return Tiny(folder, load_release(folder), towers, codec, items)
