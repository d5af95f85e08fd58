"""What the whole path gives on the built-in world."""

import json
import time

import pyarrow.parquet as pq
import pytest

from feature_repo import columns as c
from feature_repo.events.log_names import batch_key
from feature_repo.request_time import OUTPUTS
from feature_repo.stores.feature_store import feature_store, redis_client
from pipelines.ingest.ingested import read_events
from pipelines.operations import batch
from pipelines.training.split import SHARES
from serving.online.features import OnlineFeatures, user_reader, whole_user_reader
from serving.releases.release import load_release


def test_each_stage_is_better_than_the_one_before(evaluation):
    ndcg = {name: figures["ndcg@10"] for name, figures in evaluation["models"].items()}
    assert ndcg["funnel"] > ndcg["two_tower"] > ndcg["popular"] > ndcg["random"]
    assert ndcg["two_tower"] > ndcg["recently_popular"]


def test_nobody_beats_the_true_preferences_of_the_session(evaluation):
    ndcg = {name: figures["ndcg@10"] for name, figures in evaluation["models"].items()}
    best = ndcg.pop("oracle")
    assert max(ndcg.values()) < best
    assert ndcg["funnel"] > 0.2 * best
    assert evaluation["share_of_best_possible"]["funnel"] == pytest.approx(ndcg["funnel"] / best)


def test_candidates_bound_the_ranker(evaluation):
    candidates = evaluation["candidates"]
    assert candidates["recall@100"] >= evaluation["models"]["funnel"]["recall@10"]
    assert candidates["recall@100"] > evaluation["models"]["random"]["recall@100"]


def test_random_is_at_chance(evaluation):
    figures = evaluation["models"]["random"]
    assert figures["recall@10"] == pytest.approx(
        10 / 200, abs=0.04
    )  # about 200 of 250 items can be had


def test_metrics_are_consistent(evaluation):
    for figures in evaluation["models"].values():
        assert figures["recall@10"] == figures["hit_rate@10"]
        assert figures["mrr@10"] == figures["map@10"] <= figures["ndcg@10"] <= figures["recall@10"]
        # All 250 items are fewer than 500, so the right one is missing only if it may not be shown.
        assert figures["recall@10"] < figures["recall@500"] == 1.0
        assert 0.0 < figures["coverage@10"] <= 1.0


def test_split_is_in_order():
    assert list(SHARES.values()) == sorted(SHARES.values())


@pytest.mark.parametrize("whole", [False, True])
def test_serving_reads_a_user_as_feast_does(built, whole):
    release = load_release(built.release)
    online, store, now = (
        OnlineFeatures(built.workspace, release.items),
        feature_store(built.workspace),
        time.time(),
    )
    users = [*release.codec.users.values[:50], "a stranger"]
    through_feast = whole_user_reader(store) if whole else user_reader(store)
    columns, stamps = through_feast.fetch(
        [{c.USER: user, c.REQUEST_TIME: int(now)} for user in users]
    )
    stale = through_feast.expire(columns, stamps, now)
    for row, user in enumerate(users):
        found = online.user(user, now, whole=whole)
        wanted = {name: [values[row]] for name, values in columns.items() if name not in OUTPUTS}
        assert found.columns == wanted
        assert found.stale == stale[row]
        assert found.known == (user != "a stranger")


def test_batch_is_what_serving_says_and_goes_on_where_it_was(built, tmp_path, monkeypatch):
    out = tmp_path / "lists.parquet"
    monkeypatch.setattr(batch, "_USERS_PER_PART", 150)
    whole = batch._Lists.recommend
    calls = []

    def stops(self, users):
        calls.append(users)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return whole(self, users)

    monkeypatch.setattr(batch._Lists, "recommend", stops)
    with pytest.raises(KeyboardInterrupt):
        batch.run_batch(built.workspace, out, 5, redis_days=1)
    assert not out.exists()
    batch.run_batch(built.workspace, out, 5, redis_days=1)
    done = [user for users in calls[:3] for user in users]  # the first part
    assert not set(done) & {user for users in calls[5:] for user in users}
    rows = pq.read_table(out).to_pylist()
    users = sorted(read_events(built.workspace, [c.USER])[c.USER].unique())
    assert [row[c.USER] for row in rows] == users
    assert all(len(set(row["item_ids"])) == 5 for row in rows)
    kept = json.loads(redis_client(built.workspace).get(batch_key(users[-1])))
    assert kept["items"] == rows[-1]["item_ids"] and kept["release"] == built.release.name
    visible = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert visible == [out], "but for the lock that two batches to one file refuse each other by"
