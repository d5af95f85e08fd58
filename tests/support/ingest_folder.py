"""A data folder and a workspace to bring it into, for the tests of ingest."""

import pandas as pd
import pyarrow.parquet as pq

from feature_repo.dataset import DatasetSpec
from feature_repo.workspace import Workspace
from pipelines.ingest.ingest import ingest
from pipelines.ingest.ingested import read_events

NOW = pd.Timestamp("2024-06-15T12:00:00Z")
MAY = 1_714_564_800  # 2024-05-01T12:00:00Z
WEEK = 7 * 86_400


def spec_of(path="events.csv", users=None, items=None, **events):
    columns = {"user": "user", "item": "item", "timestamp": "time"}
    raw = {
        "name": "tiny",
        "events": {"path": path, **columns, **events},
        "users": users,
        "items": items,
    }
    return DatasetSpec.model_validate(
        {key: value for key, value in raw.items() if value is not None}
    )


TYPED = {
    "type": "type",
    "value": "value",
    "types": {"view": {"positive": True}, "buy": {"weight": 5, "positive": True}},
}


class World:
    """A data folder, and a workspace to bring it into."""

    def __init__(self, root, folder=None, workspace=None):
        self.folder = folder or root / "data"
        self.workspace = workspace or Workspace(root / "work")
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, name, content):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def ingest(self, spec, now=NOW, **options):
        return ingest(spec, self.folder, self.workspace, now=now, **options)

    def events(self):
        return read_events(self.workspace)

    def quarantine(self):
        files = sorted((self.workspace.ingest / "quarantine").glob("*.parquet"))
        found = pd.concat([pq.read_table(path).to_pandas() for path in files], ignore_index=True)
        return found.sort_values(["file", "line"], ignore_index=True)

    def reasons(self):
        found = self.quarantine()
        keys = list(zip(found["file"], found["line"], strict=True))
        assert len(keys) == len(set(keys))
        return dict(zip(keys, found["reason"], strict=True))

    def bytes(self):
        return {
            path.relative_to(self.workspace.root).as_posix(): path.read_bytes()
            for path in self.workspace.root.rglob("*")
            if path.is_file() and path.name != ".ingest.lock"
        }


def rows_of(*lines, header="user,item,time"):
    return "\n".join([header, *lines]) + "\n"


ITEMS = {
    "path": "items",
    "key": "id",
    "attributes": {"title": "text", "tags": "multi_categorical", "price": "numeric"},
    "rename": {"title": "name"},
    "available_from": "from",
}
