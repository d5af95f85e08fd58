"""Feast's point-in-time join at size: DuckDB (profile ``local``) and Spark (``cluster``).

Two views with nine features each, a year of daily snapshots; entity rows at random users, items and
times, some before the first snapshot and some past the TTL. Every value of every row is compared.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, ValueType
from feast.repo_config import RepoConfig
from feast.types import Float64, Int64, String

from pipelines import display

_USERS, _ITEMS, _DAYS = 10_000, 5_000, 365
_SNAPSHOTS = 20
_START = pd.Timestamp("2024-01-01", tz="UTC")
_TTL = timedelta(days=90)


def run(rows: int, spark: bool) -> dict[str, Any]:
    """Time both joins of ``rows`` entity rows x 18 features and count the values that differ.

    Returns:
        rows, features, duckdb_s (best of three), spark_s (None if left out) and mismatches.

    """
    with (
        tempfile.TemporaryDirectory(prefix="funnel-point-in-time-") as name,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        folder = Path(name)
        with display.stage("Write tables"):
            tables = {
                "user": _write(folder, "user", _USERS, 1),
                "item": _write(folder, "item", _ITEMS, 2),
            }
            entities = _entities(rows)
        features = [
            f"{name}_features:{feature}" for name, columns in tables.items() for feature in columns
        ]
        with display.stage("DuckDB"):
            store = _store(folder, tables, "local")
            seconds = []
            for _ in range(3):
                start = time.perf_counter()
                fast = store.get_historical_features(entity_df=entities, features=features).to_df()
                seconds.append(time.perf_counter() - start)
        figures = {
            "rows": rows,
            "features": len(features),
            "duckdb_s": round(min(seconds), 3),
            "spark_s": None,
        }
        if spark:
            figures |= _against_spark(
                folder, tables, entities=entities, features=features, fast=fast
            )
    return {**figures, "mismatches": figures.get("mismatches", 0)}


def _against_spark(
    folder: Path,
    tables: dict[str, list[str]],
    *,
    entities: pd.DataFrame,
    features: list[str],
    fast: pd.DataFrame,
) -> dict[str, Any]:
    """Time Spark's join and compare its values with DuckDB's, ``fast``."""
    from pipelines.features.spark import spark_session

    with display.stage("Spark"):
        session = spark_session("point-in-time", work=folder)
        store = _store(folder, tables, "cluster")
        start = time.perf_counter()
        slow = store.get_historical_features(entity_df=entities, features=features).to_df()
        seconds = time.perf_counter() - start
        session.stop()
    return {"spark_s": round(seconds, 3), "mismatches": mismatches(fast, slow, ["row"])}


def mismatches(left: pd.DataFrame, right: pd.DataFrame, key: list[str]) -> int:
    """Return how many values differ between two frames, rows matched by ``key``."""
    left, right = left.set_index(key).sort_index(), right.set_index(key).sort_index()
    if len(left) != len(right) or not left.index.equals(right.index):
        return max(len(left), len(right)) * len(left.columns)
    differing = 0
    for column in left.columns:
        if pd.api.types.is_datetime64_any_dtype(left[column]):
            continue
        if left[column].dtype == object:
            differing += int((left[column].astype(str) != right[column].astype(str)).sum())
            continue
        a, b = left[column].to_numpy(dtype=np.float64), right[column].to_numpy(dtype=np.float64)
        differing += int((~((a == b) | (np.isnan(a) & np.isnan(b)))).sum())
    return differing


def _write(folder: Path, entity: str, count: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    size = count * _SNAPSHOTS
    day = generator.integers(0, _DAYS, size)
    frame = pd.DataFrame(
        {
            f"{entity}_id": np.char.add(
                entity[0], np.repeat(np.arange(count), _SNAPSHOTS).astype(str)
            )
        }
    )
    frame["event_timestamp"] = _START + pd.to_timedelta(day, unit="D")
    columns = [f"{entity}_{n}" for n in range(9)]
    for n, column in enumerate(columns):
        frame[column] = generator.integers(0, 1_000, size) if n % 2 else generator.random(size)
    frame = frame.drop_duplicates([f"{entity}_id", "event_timestamp"])
    frame["event_timestamp"] = frame["event_timestamp"].astype("datetime64[us, UTC]")
    (folder / entity).mkdir()
    frame.to_parquet(folder / entity / "part-0.parquet", index=False)
    return columns


def _entities(rows: int) -> pd.DataFrame:
    generator = np.random.default_rng(3)
    seconds = generator.integers(-10 * 86_400, (_DAYS + 100) * 86_400, rows)
    return pd.DataFrame(
        {
            "user_id": np.char.add("u", generator.integers(0, _USERS, rows).astype(str)),
            "item_id": np.char.add("i", generator.integers(0, _ITEMS, rows).astype(str)),
            "event_timestamp": (_START + pd.to_timedelta(seconds, unit="s")).astype(
                "datetime64[us, UTC]"
            ),
            "row": np.arange(rows),
        }
    )


def _store(folder: Path, tables: dict[str, list[str]], profile: Any) -> FeatureStore:
    from feature_repo.declarations.views import source

    offline: dict[str, Any] = {"type": "feature_repo.stores.offline_store.AsofDuckDBOfflineStore"}
    if profile == "cluster":
        offline = {"type": "spark", "spark_conf": {"spark.sql.session.timeZone": "UTC"}}
    config = RepoConfig(
        project="benchmark",
        provider="local",
        registry=str(folder / f"{profile}.db"),
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        offline_store=offline,
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    store = FeatureStore(config=config)
    objects: list[Any] = []
    for name, columns in tables.items():
        entity = Entity(name=name, join_keys=[f"{name}_id"], value_type=ValueType.STRING)
        kinds = [Field(name=f"{name}_id", dtype=String)]
        kinds += [
            Field(name=column, dtype=Int64 if n % 2 else Float64)
            for n, column in enumerate(columns)
        ]
        view = FeatureView(
            name=f"{name}_features",
            entities=[entity],
            ttl=_TTL,
            schema=kinds,
            source=source(name, folder, profile),
        )
        objects += [entity, view]
    store.apply(objects)
    return store
