"""No row may know its own future."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo import columns as c
from feature_repo.dataset import SpecError
from pipelines.evaluation.ablations import _AsOfMidnight
from pipelines.evaluation.replayed_requests import replay_requests
from pipelines.features.point_in_time import PointInTime
from pipelines.ingest.ingested import read_events
from pipelines.training.config import SampleConfig
from pipelines.training.past_requests import InteractionHistory, requests_from
from pipelines.training.ranking_sets import RankingSets
from pipelines.training.split import Split, epoch_seconds
from pipelines.training.train_retrieval import examples
from serving.releases.release import load_release, load_retrieval
from tests.support.small_world import silent

PLANTED = 987_654_321


def test_a_planted_feature_that_tells_the_future_is_never_joined(copied):
    """Rows stamped at the very batch of the events they give away, in the table itself."""
    events = read_events(copied)
    chosen = events.iloc[len(events) // 2 :: 97]
    folder = copied.features.resolve() / "user_activity"
    schema = pq.read_schema(next(folder.glob("*.parquet")))
    planted = pd.DataFrame({name: PLANTED for name in schema.names}, index=range(len(chosen)))
    planted[c.USER] = chosen[c.USER].to_numpy()
    planted[c.EVENT_TIMESTAMP] = chosen[c.TIMESTAMP].to_numpy()
    planted = planted.drop_duplicates([c.USER, c.EVENT_TIMESTAMP])
    pq.write_table(
        pa.Table.from_pandas(planted, schema, preserve_index=False), folder / "planted.parquet"
    )
    features = PointInTime(copied)

    def told(batch):
        rows = features.users("online_user_v1", chosen[c.USER].to_numpy(), batch)
        return [value for _, columns in rows for value in columns["events_all"]]

    at = chosen[c.TIMESTAMP].astype("int64").to_numpy() / 1e6
    assert PLANTED not in told(at)
    assert told(at + 1.0).count(PLANTED) == len(
        chosen
    )  # it was there to be seen, a second too late


def test_what_rankers_are_chosen_by_knows_nothing_of_the_test_slice(built):
    """Also not by leaving out what a user interacts with soon after, beyond the slice's end."""
    events = read_events(built.workspace)
    split = Split.by_time(events)
    before = events[epoch_seconds(events[c.TIMESTAMP]) < split.test]
    retrieval = load_retrieval(built.workspace.models / "retrieval")
    sample = SampleConfig(selection_requests=10_000)
    logs = (events, before)
    whole, cut = (
        RankingSets(
            built.workspace, retrieval, log, split, sample=sample, progress=silent
        ).selection()
        for log in logs
    )
    assert whole.digest() == cut.digest()


def test_orders_are_judged_by_positive_requests_and_probabilities_by_all(built):
    events = read_events(built.workspace)
    split = Split.by_time(events)
    events[c.POSITIVE] = np.arange(len(events)) % 2 == 0
    retrieval = load_retrieval(built.workspace.models / "retrieval")
    rows = RankingSets(
        built.workspace,
        retrieval,
        events,
        split,
        sample=SampleConfig(selection_requests=20),
        progress=silent,
    ).selection()
    assert 30 < len(rows.group_sizes()) < 55


def test_users_without_streaming_are_those_of_the_last_midnight(built):
    """Daily features change at midnight only, so they are what they are at the request itself."""
    release = load_release(built.release)
    events = read_events(built.workspace).iloc[-400::20]
    requests, features = requests_from(events, release.codec), PointInTime(built.workspace)
    midnight, interactions = (
        _AsOfMidnight(features, requests),
        InteractionHistory(read_events(built.workspace), release.codec),
    )
    daily = release.codec.user_counts
    for batch in replay_requests(release, features, requests, interactions):
        found = midnight(batch)
        assert all(list(found[name]) == list(batch.columns[name]) for name in daily)
        lengths = zip(found[c.HISTORY_TIMES], batch.columns[c.HISTORY_TIMES], strict=True)
        assert all(len(old) <= len(new) for old, new in lengths if old is not None)


def test_cuts_of_time_are_different_timestamps():
    days = pd.to_datetime(np.repeat(np.arange(20), 50), unit="D", utc=True)
    split = Split.by_time(pd.DataFrame({c.TIMESTAMP: days, c.POSITIVE: True}))
    cuts = [split.ranker, split.calibrate, split.selection, split.test]
    assert cuts == sorted(set(cuts)) and cuts[-1] <= epoch_seconds(pd.Series(days)).max()
    for few in (days[:50], days[:0]):
        with pytest.raises(SpecError, match="too few positive events"):
            Split.by_time(pd.DataFrame({c.TIMESTAMP: few, c.POSITIVE: True}))


def test_history_never_holds_its_own_event(built):
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
