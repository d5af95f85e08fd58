"""Ways in which a release can be broken, each to be refused.

Name -> what it does to the release's folder.

They hold for any release, whatever its ranker. Those that are ``remade`` write a new manifest over
the damage, as
somebody does who packs models that were broken before: there the hashes say nothing. Do it to a
    copy that nobody
has loaded: processes have a release's files mapped into memory.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import onnx
import pyarrow as pa
from onnx import numpy_helper

from feature_repo.files import read_json
from feature_repo.hashing import fingerprint
from serving.releases.manifest import MANIFEST, read_manifest, write_manifest

Damage = Callable[[Path], object]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remade(change: Damage) -> Damage:
    """Return a damage that no hash tells."""

    def damage(folder: Path) -> None:
        change(folder)
        write_manifest(folder, read_manifest(folder).provenance)

    return damage


def change_json(name: str, change: Callable[[Any], Any]) -> Damage:
    def damage(folder: Path) -> None:
        values = read_json(folder / name)
        changed = change(values)
        (folder / name).write_text(json.dumps(values if changed is None else changed))

    return damage


def change_array(name: str, change: Callable[[Any], Any]) -> Damage:
    def damage(folder: Path) -> None:
        array = np.load(folder / name)
        changed = change(array)
        np.save(folder / name, array if changed is None else changed, allow_pickle=False)

    return damage


def put(place: Any, value: Any) -> Callable[[Any], None]:
    """Return what puts a value at a place of an array or a JSON object."""

    def change(of: Any) -> None:
        of[place] = value

    return change


def vectors_of(folder: Path) -> Any:
    """Return the vectors of a release's items, without item 0 and the spare rows."""
    return np.load(folder / "item_vectors.npy")[
        1 : len(read_json(folder / "codec.json")["items"]) + 1
    ]


def rebuild_index(make: Callable[[Any], Any]) -> Damage:
    """Return a damage that writes the index which is made of the item vectors."""

    def damage(folder: Path) -> None:
        vectors = vectors_of(folder)
        faiss.write_index(make(np.ascontiguousarray(vectors)), str(folder / "index.faiss"))

    return damage


def index_of(
    metric: int, change: Callable[[Any], Any] = lambda vectors: vectors, kind: str = "Flat"
) -> Damage:
    def make(vectors: Any) -> Any:
        index = faiss.index_factory(vectors.shape[1], kind, metric)
        index.add(np.ascontiguousarray(change(vectors)))
        return index

    return rebuild_index(make)


def claim_a_huge_index(folder: Path) -> None:
    """Say in the index that its vectors take terabytes: who believes it runs out of memory."""
    content = bytearray((folder / "index.faiss").read_bytes())
    size = vectors_of(folder).size
    place = content.index(size.to_bytes(8, "little"))
    content[place : place + 8] = (1 << 37).to_bytes(8, "little")
    (folder / "index.faiss").write_bytes(content)


def change_tower(change: Callable[[Any], None], name: str = "user_tower.onnx") -> Damage:
    def damage(folder: Path) -> None:
        model = onnx.load_from_string((folder / name).read_bytes())
        change(model.graph)
        (folder / name).write_bytes(model.SerializeToString())

    return damage


def other_inputs(graph: Any) -> None:
    names = {value.name: f"{value.name}_v2" for value in graph.input}
    for value in graph.input:
        value.name = names[value.name]
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def fewer_users(graph: Any) -> None:
    """Keep only the unknown user's vector, as of a tower trained without the codec's users."""
    table = next(one for one in graph.initializer if one.name == "ids.weight")
    table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table)[:1].copy(), table.name))


def fewer_attributes(graph: Any) -> None:
    """Keep only the vector of no attribute, as of a tower that was trained on other items."""
    table = next(one for one in graph.initializer if one.name == "attribute_table.weight")
    table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table)[:1].copy(), table.name))


def no_numbers(graph: Any) -> None:
    for table in graph.initializer:
        values = numpy_helper.to_array(table)
        if values.dtype == np.float32 and values.ndim == 2:
            table.CopyFrom(numpy_helper.from_array(np.full_like(values, np.nan), table.name))


def spoil_ranker(folder: Path) -> None:
    """Make the ranker give NaN, whatever its kind."""
    ranker = folder / "ranker"
    if (ranker / "weights.npz").is_file():
        with np.load(ranker / "weights.npz") as arrays:
            np.savez(
                ranker / "weights.npz",
                **{name: np.full_like(arrays[name], np.nan) for name in arrays.files},
            )
    elif (ranker / "network.onnx").is_file():
        model = onnx.load_from_string((ranker / "network.onnx").read_bytes())
        no_numbers(model.graph)
        (ranker / "network.onnx").write_bytes(model.SerializeToString())
    else:
        change_json("ranker/model.json", lambda of: of["intercept"].__setitem__(0, float("nan")))(
            folder
        )


def cut_off_model(folder: Path) -> None:
    """Cut the ranker's model, whatever its kind."""
    ranker = folder / "ranker"
    names = ("weights.npz", "network.onnx", "booster_0.txt", "model.json")
    truncate(next(ranker / name for name in names if (ranker / name).is_file()))


def at(name: str, change: Damage) -> Damage:
    """Return a damage to one file."""
    return lambda folder: change(folder / name)


def instead(name: str, put_there: Damage) -> Damage:
    """Return a damage that puts something else in the place of a file."""

    def damage(path: Path) -> None:
        path.unlink()
        put_there(path)

    return at(name, damage)


def write(content: bytes) -> Damage:
    return lambda path: path.write_bytes(content)


def archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, vectors=np.zeros((2, 2), dtype=np.float32))


def manifest_of_another(folder: Path) -> None:
    manifest = read_json(folder / MANIFEST)
    other = shutil.copytree(folder, folder.with_name(f".other-{folder.name}"))
    write_shares = change_json("shares.json", put("new", 7))
    remade(write_shares)(other)
    assert read_json(other / MANIFEST)["release"] != manifest["release"]
    shutil.copy(other / MANIFEST, folder / MANIFEST)
    shutil.rmtree(other)


def half_copied(folder: Path) -> None:
    """Leave what a copy has done by its middle; the manifest came early."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    truncate(files[len(files) // 2])
    for path in files[len(files) // 2 + 1 :]:
        path.unlink()


def other_items(folder: Path) -> None:
    """Give the items' table other ids."""
    path = folder / "items.arrow"
    with pa.OSFile(str(path), "rb") as file:
        table = pa.ipc.open_file(file).read_all()
    ids = pa.array([f"another-{row}" for row in range(len(table))])
    table = table.set_column(0, table.column_names[0], ids)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def empty_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def leave_the_manifest(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.name != MANIFEST:
            path.unlink()


def all_alike(codec: dict[str, Any]) -> None:
    codec["items"] = [codec["items"][0]] * len(codec["items"])


def reverse(part: str) -> Callable[[dict[str, Any]], None]:
    return lambda of: of[part].reverse()


def of_heads(**values: Any) -> Damage:
    """Return a damage to the calibration of the first event type."""
    return change_json("ranker/calibration.json", lambda of: of["heads"][0].update(values))


_NAN = float("nan")
_DEEPER_THAN_PYTHON = b"[" * 100_000
_NEIGHBOURS, _VECTORS, _RAW = "neighbours.npy", "item_vectors.npy", "raw_item_vectors.npy"
_ITEM_TOWER = "item_tower.onnx"
_IP = faiss.METRIC_INNER_PRODUCT

FILES = [
    "codec.json", "filters.json", "shares.json", "index.faiss", _VECTORS, _RAW, _NEIGHBOURS,
    "similarities.npy", "items.arrow", "items.numeric.npy", "user_tower.onnx", _ITEM_TOWER,
    "ranker/model.json", "ranker/schema.json", "ranker/calibration.json",
]  # fmt: skip
"""Files that every release has, one of each kind at the least."""

BY_HASH: dict[str, Damage] = {
    **{f"truncated {name}": at(name, truncate) for name in [*FILES, MANIFEST]},
    **{f"flipped bit in {name}": at(name, flip) for name in FILES},
    **{f"missing {name}": at(name, Path.unlink) for name in [*FILES, MANIFEST]},
    "extra file": at("ranker/notes.txt", write(b"what is this?")),
    "empty manifest": at(MANIFEST, write(b"")),
    "manifest without files": change_json(MANIFEST, lambda of: {**of, "files": {}}),
    "manifest that is a list": change_json(MANIFEST, lambda _: []),
    "manifest deeper than Python": at(MANIFEST, write(_DEEPER_THAN_PYTHON)),
    "manifest of another release": manifest_of_another,
    "manifest with another id": change_json(MANIFEST, put("release", fingerprint("made up"))),
    "manifest of another format": change_json(MANIFEST, put("format", 99)),
    "half-copied": half_copied,
    "empty files": empty_all,
    "nothing but the manifest": leave_the_manifest,
    "no folder": shutil.rmtree,
    "a link to nowhere": instead("index.faiss", lambda path: path.symlink_to("nowhere")),
    "a link to itself": instead("codec.json", lambda path: path.symlink_to(path.name)),
    "a directory in the place of a file": instead("codec.json", Path.mkdir),
    "a directory in the place of the manifest": instead(MANIFEST, Path.mkdir),
    "a pipe in the place of a file": instead("shares.json", os.mkfifo),
    "a pipe in the place of the manifest": instead(MANIFEST, os.mkfifo),
}
"""What the hashes tell."""

REMADE: dict[str, Damage] = {
    **{f"truncated {name}, hashed again": at(name, truncate) for name in FILES},
    "truncated ranker, hashed again": cut_off_model,
    "file left out": at("similarities.npy", Path.unlink),
    "unreadable JSON": at("codec.json", write(b"{")),
    "JSON deeper than Python": at("codec.json", write(_DEEPER_THAN_PYTHON)),
    "JSON that is no text": at("filters.json", write(b"\xff\xfe\x00")),
    "a pickle for an array": at(_NEIGHBOURS, write(pickle.dumps([1]))),
    "an array of objects": at(
        _NEIGHBOURS, lambda path: np.save(path, np.array([{}], dtype=object))
    ),
    "an archive for an array": at(_VECTORS, archive),
    "NaN in the vectors": change_array(_VECTORS, put((3, 1), _NAN)),
    "infinity in the raw vectors": change_array(_RAW, put((3, 1), np.inf)),
    "NaN in the similarities": change_array("similarities.npy", put((3, 1), _NAN)),
    "vectors of another dimension": change_array(_VECTORS, lambda of: of[:, :-1].copy()),
    "raw vectors of another dimension": change_array(_RAW, lambda of: of[:, :-1].copy()),
    "vectors of another type": change_array(_VECTORS, lambda of: of.astype(np.float64)),
    "vectors that are not of unit length": change_array(_VECTORS, lambda of: of * np.float32(2)),
    "fewer vectors": change_array(_VECTORS, lambda of: of[:-1].copy()),
    "index of other items": index_of(_IP, lambda of: np.roll(of, 1, axis=0)),
    "index of fewer items": index_of(_IP, lambda of: of[:-1]),
    "index of another dimension": rebuild_index(lambda of: faiss.IndexFlatIP(of.shape[1] + 1)),
    "index by distance": index_of(faiss.METRIC_L2),
    "index of another kind": index_of(_IP, kind="HNSW8"),
    "index that claims to be huge": claim_a_huge_index,
    "codec with fewer items": change_json("codec.json", lambda of: of["items"].pop() and None),
    "codec with more users": change_json(
        "codec.json", lambda of: of["users"].extend(map(str, range(1_000)))
    ),
    "codec with the items in another order": change_json("codec.json", reverse("items")),
    "codec with one item only": change_json("codec.json", all_alike),
    "codec without its data set": change_json("codec.json", lambda of: of.pop("spec") and None),
    "neighbour that does not exist": change_array(_NEIGHBOURS, put((2, 0), 10**9)),
    "neighbour below 0": change_array(_NEIGHBOURS, put((2, 0), -5)),
    "category that does not exist": change_array("items.categories.npy", put((2, 0), 10**6)),
    "attribute that does not exist": change_array("items.codes.npy", put((2, 0), 10**6)),
    "availability that is no time": change_array("items.times.npy", put((0, 2), _NAN)),
    "table of other items": other_items,
    "user tower with other inputs": change_tower(other_inputs),
    "user tower of fewer users": change_tower(fewer_users),
    "user tower that gives NaN": change_tower(no_numbers),
    "item tower with other inputs": change_tower(other_inputs, _ITEM_TOWER),
    "item tower of fewer attributes": change_tower(fewer_attributes, _ITEM_TOWER),
    "item tower that gives NaN": change_tower(no_numbers, _ITEM_TOWER),
    "user tower for an item tower": lambda folder: shutil.copy(
        folder / "user_tower.onnx", folder / _ITEM_TOWER
    ),
    "ranker of other columns": change_json("ranker/schema.json", reverse("numeric")),
    "ranker of other event types": change_json("ranker/schema.json", put("heads", ["one"])),
    "ranker of renamed event types": change_json("ranker/schema.json", reverse("heads")),
    "ranker of other vocabularies": change_json("ranker/schema.json", reverse("cardinalities")),
    "ranker of an unknown kind": change_json("ranker/model.json", put("kind", "oracle")),
    "ranker that gives NaN": spoil_ranker,
    "calibration that is NaN": of_heads(method="platt", slope=_NAN),
    "calibration that falls": of_heads(method="platt", slope=-1.0),
    "calibration that falls in steps": of_heads(method="isotonic", x=[0.0, 1.0], y=[0.5, 0.1]),
    "calibration of an unknown method": of_heads(method="guess"),
    "unknown field in the filters": change_json("filters.json", put("max_per_author", 3)),
    "filters of an unknown event type": change_json("filters.json", put("exclude_seen", ["smelt"])),
    "unknown candidate source": change_json("shares.json", put("random", 5)),
}
"""What the hashes do not tell, before the manifest is written again."""

DAMAGE: dict[str, Damage] = {**BY_HASH, **{name: remade(change) for name, change in REMADE.items()}}
