"""No row may know its own future."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import columns as c
from pipelines.ingest import read_events
from pipelines.point_in_time import PointInTime
from pipelines.requests import requests_from
from pipelines.train_retrieval import examples
from serving.release import load_release

PLANTED = 987_654_321


def test_a_planted_feature_that_tells_the_future_is_never_joined(copied):
    """Rows stamped at the very moment of the events they give away, in the table itself."""
    events = read_events(copied)
    chosen = events.iloc[len(events) // 2 :: 97]
    folder = copied.features.resolve() / "user_activity"
    schema = pq.read_schema(next(folder.glob("*.parquet")))
    planted = pd.DataFrame({name: PLANTED for name in schema.names}, index=range(len(chosen)))
    planted[c.USER] = chosen[c.USER].to_numpy()
    planted[c.EVENT_TIMESTAMP] = chosen[c.TIMESTAMP].to_numpy()
    planted = planted.drop_duplicates([c.USER, c.EVENT_TIMESTAMP])
    pq.write_table(pa.Table.from_pandas(planted, schema, preserve_index=False), folder / "planted.parquet")
    features = PointInTime(copied)

    def told(moment):
        rows = features.users("online_user_v1", chosen[c.USER].to_numpy(), moment)
        return [value for _, columns in rows for value in columns["events_all"]]

    at = chosen[c.TIMESTAMP].astype("int64").to_numpy() / 1e6
    assert PLANTED not in told(at)
    assert told(at + 1.0).count(PLANTED) == len(chosen)  # it was there to be seen, a second too late


def test_history_never_holds_its_own_moment(built):
    codec = load_release(built.release).codec
    events = read_events(built.workspace)
    events = events[~events.duplicated([c.USER, c.ITEM])]
    made = examples(codec, PointInTime(built.workspace), events.iloc[-2_000:])
    assert len(made) > 500
    assert not (made.context.history == made.item[:, None]).any()
    present = made.context.history > 0
    assert (made.context.ages[present] > 0).all()


def test_history_is_what_the_log_says(built):
    codec = load_release(built.release).codec
    events = read_events(built.workspace)
    positive = events[events[c.POSITIVE]]
    sample = positive.iloc[-300:]
    made = examples(codec, PointInTime(built.workspace), sample)
    requests = requests_from(sample, codec)
    for row in range(0, len(sample), 7):
        before = positive[c.TIMESTAMP] < sample[c.TIMESTAMP].iloc[row]
        own = positive[(positive[c.USER] == requests.user[row]) & before]
        newest_first = list(dict.fromkeys(reversed(own[c.ITEM].tolist())))[: c.HISTORY_LENGTH]
        expected = codec.items.encode(newest_first)
        assert made.context.history[row, : len(expected)].tolist() == expected.tolist()
        assert not np.any(made.context.history[row, len(expected) :])
