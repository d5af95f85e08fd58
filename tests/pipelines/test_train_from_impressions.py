"""Which event belongs to which response, and rankers that learn from both."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from prometheus_client import CollectorRegistry, Counter

from feature_repo import columns as c
from feature_repo.files import read_json, write_atomically, write_json
from feature_repo.workspace import MissingStage, Workspace
from pipelines.streaming.offline import EVENT_SCHEMA, Part, archive, arrival, write_part
from pipelines.training import from_impressions as module
from pipelines.training.from_impressions import (
    TooFewImpressions,
    attribute,
    compatible_releases,
    impression_rows,
    logged_events,
    train_from_impressions,
)
from pipelines.training.ranking_sets import row_schema
from pipelines.training.train import train_served
from ranking.config import RankerConfig
from ranking.models.scorer import CalibratedRanker
from ranking.row_schema import RowSchema
from serving.impressions import Impression, ImpressionLog, read_impressions, to_table
from serving.recommender.codec import Codec
from tests.support.command_line import funnel
from tests.support.tiny_release import PROVENANCE, SPEC, write_release

DAY = 86_400.0
START = 1_700_000_000.0
HEADS = ("view", "buy")
SCHEMA = RowSchema(("a", "b"), ("g",), (9,), HEADS, (1.0, 3.0))
RANKERS = RankerConfig(kinds=("popularity", "logistic"))


def silent(*_):
    """Report to nobody."""


def learn(workspace, **options):
    """Train the rankers from impressions."""
    return train_from_impressions(
        workspace, RANKERS, attribution_s=DAY, log=silent, progress=silent, **options
    )


def served(request, user, at, items, ranked=None, release="now"):
    """One response, its vectors telling place and request."""
    n, m = len(items), len(items) if ranked is None else ranked
    return Impression(
        request_id=request,
        user_id=user,
        time=START + at,
        release=release,
        k=n,
        degraded=[],
        item_ids=list(items),
        scores=np.zeros(n, dtype=np.float32),
        sources=[["popular"]] * n,
        numeric=np.array([[at, place] for place in range(m)], dtype=np.float32).reshape(m, 2),
        categorical=np.arange(m, dtype=np.int32).reshape(m, 1),
    )


def happened(*rows):
    """Events of (user, item, type, seconds after the start, request or None); ids by place."""
    users, items, types, at, requests = ([row[place] for row in rows] for place in range(5))
    return pd.DataFrame(
        {
            c.EVENT_ID: [f"e{n}" for n in range(len(rows))],
            c.USER: users,
            c.ITEM: items,
            c.TYPE: types,
            c.TIMESTAMP: pd.to_datetime(
                START + np.array(at, dtype=np.float64), unit="s", utc=True
            ).as_unit("us"),
            "request_id": pd.Series(requests, dtype=object),
        }
    )


def hits(impressions, events, window=100.0):
    """Return the (request, item, event type) that attribution finds."""
    labels = attribute(to_table(impressions), events, HEADS, window)
    shown = [(one.request_id, item) for one in impressions for item in one.item_ids]
    return {(*shown[row], HEADS[head]) for row, head in np.argwhere(labels)}


ONE = [served("r1", "u", 0, "abc")]
TWO = [served("r1", "u", 0, "abc"), served("r2", "u", 50, "bcd")]


@pytest.mark.parametrize(
    ("impressions", "event", "expected"),
    [
        (ONE, ("u", "b", "view", 10, None), {("r1", "b", "view")}),
        (ONE, ("u", "b", "view", 10, "r1"), {("r1", "b", "view")}),
        (ONE, ("u", "b", "buy", 10, None), {("r1", "b", "buy")}),
        (ONE, ("u", "b", "stare", 10, None), set()),
        (ONE, ("u", "z", "view", 10, None), set()),  # was not shown
        (ONE, ("w", "b", "view", 10, None), set()),  # somebody else
        (ONE, ("w", "b", "view", 10, "r1"), set()),  # somebody else's request
        (ONE, ("u", "b", "view", 10, "r9"), set()),  # a request that was not logged, and no other
        (ONE, ("u", "z", "view", 10, "r1"), set()),  # the request did not show it
        (ONE, ("u", "b", "view", -1, None), set()),  # before
        (ONE, ("u", "b", "view", 0, None), set()),  # not after
        (ONE, ("u", "b", "view", 0, "r1"), set()),
        (ONE, ("u", "b", "view", 100, None), {("r1", "b", "view")}),  # the window's last moment
        (ONE, ("u", "b", "view", 100, "r1"), {("r1", "b", "view")}),
        (ONE, ("u", "b", "view", 100.001, None), set()),
        (ONE, ("u", "b", "view", 100.001, "r1"), set()),
        (TWO, ("u", "b", "view", 60, None), {("r2", "b", "view")}),  # the latest that showed it
        (TWO, ("u", "a", "view", 60, None), {("r1", "a", "view")}),
        (
            TWO,
            ("u", "b", "view", 50, None),
            {("r1", "b", "view")},
        ),  # at the moment of the second, not after it
        (TWO, ("u", "b", "view", 60, "r1"), {("r1", "b", "view")}),  # it says so
        (TWO, ("u", "d", "view", 60, "r1"), set()),
        (
            TWO,
            ("u", "b", "view", 150.5, None),
            set(),
        ),  # too late for the latest: not the earlier one's either
    ],
)
def test_attribution(impressions, event, expected):
    assert hits(impressions, happened(event)) == expected


def test_many_events_at_once():
    impressions = [*TWO, served("r3", "w", 50, "ab"), served("r4", "u", 70, "")]
    events = happened(
        ("w", "a", "buy", 55, None),
        ("u", "b", "view", 60, None),
        ("u", "b", "view", 61, None),  # again: still one label
        ("u", "b", "buy", 61, "r1"),
        ("w", "a", "view", 54, None),
        ("u", "c", "view", 20, None),
        ("u", "c", "view", 52, None),
    )
    events = pd.concat([events, events.iloc[[1]].assign(**{c.ITEM: "d"})])  # an id once more
    assert hits(impressions, events) == {
        ("r3", "a", "buy"),
        ("r3", "a", "view"),
        ("r2", "b", "view"),
        ("r1", "b", "buy"),
        ("r1", "c", "view"),
        ("r2", "c", "view"),
    }


def test_nothing_happened_or_nothing_was_served(tmp_path):
    nothing = logged_events(Workspace(tmp_path))
    assert hits(TWO, nothing) == set()
    assert attribute(
        read_impressions(tmp_path), happened(("u", "a", "view", 1, None)), HEADS, 9.0
    ).shape == (0, 2)
    rows = impression_rows(read_impressions(tmp_path), nothing, SCHEMA, set())
    assert len(rows.data) == 0 and len(rows.time) == 0


def test_events_may_come_without_request_ids():
    events = happened(("u", "b", "view", 60, None)).drop(columns="request_id")
    assert hits(TWO, events) == {("r2", "b", "view")}


def test_rows_are_the_served_vectors():
    impressions = [
        served("r1", "u", 0, "abc", ranked=2),  # c was backfilled
        served("r2", "u", 10, "ab", release="other"),
        served("r3", "w", 20, "ba"),  # nothing came of it: negatives
        served("r4", "u", 30, "xy", ranked=0),
        served("r5", "u", 40, "a"),  # its window is not over
    ]
    events = happened(
        ("u", "a", "view", 5, None),
        ("u", "c", "view", 6, None),
        ("u", "b", "view", 15, None),  # follows the other release's response
        ("u", "a", "buy", 45, None),
    )
    table = to_table(impressions)
    rows = impression_rows(
        table, events, SCHEMA, {"now", "older"}, attribution_s=100.0, now=START + 139
    )
    assert rows.data.request.tolist() == [0, 0, 2, 2]
    assert rows.time.tolist() == [START, START, START + 20, START + 20]
    assert rows.data.numeric.tolist() == [[0, 0], [0, 1], [20, 0], [20, 1]]
    assert rows.data.categorical.tolist() == [[0], [1], [0], [1]]
    assert rows.data.labels.tolist() == [[1, 0], [0, 0], [0, 0], [0, 0]]
    rows.data.check(SCHEMA)
    later = impression_rows(
        table, events, SCHEMA, {"now", "older"}, attribution_s=100.0, now=START + 140
    )
    assert later.requests().tolist() == [0, 2, 4]
    shorter = impression_rows(table, events, SCHEMA, {"now"}, attribution_s=50.0, now=START + 139)
    assert shorter.data.labels.tolist()[-1] == [0, 1]


def write_events(workspace, events, batch=0, accepted=0.0):
    """Write events as the streaming job leaves them."""
    positions = [f"{int((START + accepted) * 1_000)}-{n}" for n in range(len(events))]
    frame = events.assign(
        position=positions,
        value=None,
        context=None,
        accepted_at=[arrival(p) for p in positions],
    )
    table = pa.Table.from_pandas(frame, EVENT_SCHEMA, preserve_index=False)
    write_part(archive(workspace), Part(1, batch, batch), table, EVENT_SCHEMA)


def test_logged_events_come_once_and_in_order(tmp_path):
    workspace = Workspace(tmp_path)
    first = happened(("u", "a", "view", 9, "r1"), ("u", "b", "view", 3, None))
    write_events(workspace, first.assign(**{c.ITEM: "late"}), batch=0, accepted=2.0)
    write_events(workspace, first, batch=1, accepted=1.0)
    write_atomically(
        archive(workspace) / ".stream-000001-000000000002-000000000002.parquet.tmp", b"half a file"
    )
    events = logged_events(workspace)
    assert events[c.EVENT_ID].tolist() == ["e1", "e0"]
    assert events[c.ITEM].tolist() == ["b", "a"]
    assert events["request_id"].tolist() == [None, "r1"]
    assert str(events[c.TIMESTAMP].dtype) == "datetime64[us, UTC]"
    assert list(events.columns) == list(logged_events(Workspace(tmp_path / "empty")).columns)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A workspace with a candidate generator and a release made of it; nothing was served yet."""
    workspace = Workspace(tmp_path_factory.mktemp("served"))
    draft = workspace.releases / "draft"
    write_release(draft)
    identity = read_json(draft / "manifest.json")["release"]
    draft.rename(workspace.releases / identity)
    (workspace.releases / "current").symlink_to(identity)
    (workspace.models / "retrieval").mkdir(parents=True)
    for name in ("codec.json", "item_vectors.npy"):
        content = (workspace.releases / identity / name).read_bytes()
        write_atomically(workspace.models / "retrieval" / name, content)
    write_json(workspace.models / "retrieval" / "report.json", {"recall": 0.5})
    write_json(workspace.models / "split.json", PROVENANCE.split)
    write_atomically(workspace.ingest / "dataset.json", SPEC.model_dump_json())
    return (
        workspace,
        identity,
        row_schema(Codec.from_dict(read_json(workspace.models / "retrieval" / "codec.json"))),
    )


@pytest.fixture
def lived(released, tmp_path):
    """The same with a history of its own."""
    workspace, identity, schema = released
    own = Workspace(tmp_path)
    for name in ("releases", "models", "ingest"):
        (own.root / name).mkdir()
        for path in (workspace.root / name).iterdir():
            (own.root / name / path.name).symlink_to(path)
    return own, identity, schema


PLANTED = "cosine_last"


def live(workspace, release, schema, requests=400, shown=8, clicks=True, spoil=None):
    """Serve for some days, a click depending on one feature; return nothing."""
    generator = np.random.default_rng(5)
    counter = Counter(
        f"lived_{release}_{requests}_{spoil}", "", ["outcome"], registry=CollectorRegistry()
    )
    log = ImpressionLog(workspace.impressions, counter)
    events = []
    place = schema.numeric.index(PLANTED)
    for number in range(requests):
        one = served(
            f"r{number}",
            f"u{number % 50}",
            number * 600.0,
            [f"i{n}" for n in range(shown)],
            release=release,
        )
        numeric = generator.normal(size=(shown, len(schema.numeric))).astype(np.float32)
        categorical = generator.integers(
            0, schema.cardinalities, (shown, len(schema.categorical))
        ).astype(np.int32)
        log.offer(replace(one, numeric=numeric, categorical=categorical))
        chance = 1 / (1 + np.exp(1.5 - 3.0 * numeric[:, place]))
        for item in np.flatnonzero(generator.random(shown) < chance):
            kind = "buy" if generator.random() < 0.3 else "view"
            named = f"r{number}" if item % 2 else None
            events.append((f"u{number % 50}", f"i{item}", kind, number * 600.0 + 60.0, named))
    log.close()
    if clicks:
        write_events(workspace, happened(*events))


def test_rankers_learn_what_users_interacted_with(lived):
    workspace, release, schema = lived
    live(workspace, release, schema)
    said = []
    report = train_served(workspace, DAY, lambda *words: said.append(words[0]), RANKERS)
    assert report.best == "logistic"
    assert said[1].startswith("400 usable requests of 400 (0 left out")
    ranker = CalibratedRanker.load(workspace.models / "ranking" / "logistic")
    numeric = np.zeros((5, len(schema.numeric)), dtype=np.float32)
    numeric[:, schema.numeric.index(PLANTED)] = np.linspace(-2, 2, 5)
    scores, _ = ranker.score(numeric, np.zeros((5, len(schema.categorical)), dtype=np.int32))
    assert (np.diff(scores) > 0).all()
    name, _ = ranker.explain(numeric[4], np.zeros(len(schema.categorical), dtype=np.int32), 1)[0]
    assert name == PLANTED
    assert report.kinds["logistic"].heads["view"].auc > 0.8
    assert (workspace.tracking / "mlflow.db").is_file()


def test_positions_are_reported_and_weighed_only_if_asked(lived, monkeypatch):
    workspace, release, schema = lived
    live(workspace, release, schema)
    given = []
    monkeypatch.setattr(
        module, "train_rankers", lambda sets, *_, positions, **__: given.append((sets, positions))
    )
    for ipw in (False, True):
        learn(workspace, ipw=ipw)
    (plain, positions), (weighted, same_positions) = given
    assert [one["position"] for one in positions] == list(range(8)) and positions == same_positions
    # Positions have nothing to do with what is clicked here: 280 training requests of 8 items
    # each.
    assert all(one["shown"] == 280 and one["propensity"] > 0.7 for one in positions)
    share = plain.train.positive().mean()
    assert np.mean([one["click_rate"] for one in positions]) == pytest.approx(share)
    for name in ("train", "calibration", "selection"):
        part = getattr(plain, name)
        same = getattr(weighted, name)
        assert part.weight is None and np.array_equal(part.labels, same.labels)
        clicked = same.labels.max(axis=1) > 0
        assert (
            (same.weight[~clicked] == 1).all()
            and (same.weight[clicked] >= 1).all()
            and same.weight.max() > 1
        )


def test_parts_are_cut_by_time(lived, monkeypatch):
    workspace, release, schema = lived
    live(workspace, release, schema)
    given = []
    monkeypatch.setattr(
        module,
        "train_rankers",
        lambda sets, *_, **__: given.extend((sets.train, sets.calibration, sets.selection)),
    )
    learn(workspace)
    assert [len(np.unique(part.request)) for part in given] == [280, 60, 60]
    assert [len(part) for part in given] == [280 * 8, 60 * 8, 60 * 8]
    assert (
        given[0].request.max() < given[1].request.min()
        and given[1].request.max() < given[2].request.min()
    )


def test_impressions_of_other_models_are_left_out(lived):
    workspace, release, schema = lived
    assert compatible_releases(workspace, schema) == {release}
    assert compatible_releases(workspace, replace(schema, head_weights=(1.0, 1.0, 1.0))) == set()
    other = workspace.releases / "other"
    manifest = read_json(workspace.releases / release / "manifest.json")
    files = {**manifest["files"], "item_vectors.npy": "0" * 64}
    write_json(other / "manifest.json", {**manifest, "release": "other", "files": files})
    assert compatible_releases(workspace, schema) == {release}
    live(workspace, "other", schema)
    with pytest.raises(
        TooFewImpressions, match=r"^0 usable requests of 400 \(400 left out.*200 are needed"
    ):
        learn(workspace)


def test_too_little_is_refused(lived):
    workspace, release, schema = lived
    with pytest.raises(
        TooFewImpressions, match="^0 usable requests of 0 .*24 hours ago: serve for longer"
    ):
        learn(workspace)
    live(workspace, release, schema, requests=199)
    with pytest.raises(TooFewImpressions, match="^199 usable requests of 199 .*200 are needed"):
        learn(workspace)
    assert not (workspace.models / "ranking").exists()


def test_without_events_nothing_can_be_learned(lived):
    workspace, release, schema = lived
    live(workspace, release, schema, requests=200, clicks=False)
    with pytest.raises(
        TooFewImpressions, match="no event followed the 140 requests for part 'train': post events"
    ):
        learn(workspace)


def test_candidates_come_first(tmp_path):
    with pytest.raises(MissingStage, match="run 'funnel train' first"):
        learn(Workspace(tmp_path))


@pytest.mark.parametrize("given", [["--no-logq"], ["--candidates", "new=5"]])
def test_what_only_towers_have_is_refused(given, tmp_path):
    done = funnel("train", "--from-impressions", *given, "--home", tmp_path)
    assert done.returncode == 2 and "trains no towers" in done.stderr


def test_the_command_line_says_what_is_missing(lived):
    workspace, _, _ = lived
    options = ["--attribution-hours", "0.5", "--home", workspace.root]
    done = funnel("train", "--from-impressions", *options)
    assert done.returncode == 1
    assert "funnel: 0 usable requests of 0" in done.stderr and "0.5 hours ago" in done.stderr
    assert "Traceback" not in done.stderr
