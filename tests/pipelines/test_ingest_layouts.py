"""The data sets whose layout ships, in tiny files of just that layout."""

import pyarrow.parquet as pq
import pytest

from feature_repo.dataset import load_spec
from pipelines.workflow.data_sets import SPECS
from tests.support.ingest_folder import rows_of


def test_movielens_1m(world):
    world.write(
        "ratings.dat", f"1::1193::5::{978300760}\n1::661::3::978302109\n2::1193::4::978298413\n"
    )
    world.write("users.dat", "1::F::1::10::48067\n2::M::56::16::70072\n")
    movies = (
        "1193::Misérables, Les (1995)::Drama|Musical\n"
        '661::James and the "Giant" Peach (1996)::Animation\n'
    )
    world.write("movies.dat", movies.encode("iso-8859-1"))
    report = world.ingest(load_spec(SPECS / "movielens-1m.toml"))
    assert (report.events, report.users, report.items, report.quarantined.total()) == (3, 2, 2, 0)
    assert world.events()["type"].tolist() == ["like", "like", "rate"]
    items = pq.read_table(world.workspace.ingest / "items.parquet").to_pandas()
    assert items["title"].tolist() == [
        "Misérables, Les (1995)",
        'James and the "Giant" Peach (1996)',
    ]
    assert list(items["genres"][0]) == ["Drama", "Musical"]


def test_movielens_latest(world):
    world.write(
        "ratings.csv",
        "userId,movieId,rating,timestamp\r\n1,1,4.0,964982703\r\n1,3,0.5,964981247\r\n",
    )
    world.write(
        "movies.csv",
        "movieId,title,genres\r\n"
        '1,"American President, The (1995)",Comedy|Romance\r\n'
        "3,X,Drama\r\n",
    )
    report = world.ingest(load_spec(SPECS / "movielens-latest-small.toml"))
    assert (report.events, report.items, report.quarantined.total()) == (2, 2, 0)
    assert world.events()["type"].tolist() == ["rate", "like"]


@pytest.mark.parametrize("articles", [False, True])
def test_deskdrop(world, articles):
    agent = '"Mozilla/5.0 (X11; Linux, x86) ""q"""'
    header = "timestamp,eventType,contentId,personId,sessionId,userAgent,userRegion,userCountry"
    lines = [
        "1465413032,VIEW,-34994,-8845,1264,,,",
        f"1465412560,COMMENT CREATED,8890,-1032,3621,{agent},SP,BR",
    ]
    world.write(
        "users_interactions.csv",
        rows_of(*lines, "1465412560,SHARE,8890,-1032,3621,,,", header=header),
    )
    if articles:
        header = (
            "timestamp,eventType,contentId,authorPersonId,authorSessionId,contentType,"
            "url,title,text,lang"
        )
        text = '"one\ntwo ' + "x" * 150_000 + '"'
        rows = [
            f"1459193988,CONTENT SHARED,{item},1,1,HTML,u,T {n},{text},en"
            for n, item in enumerate([-34994, 8890, 8890])
        ]
        world.write("shared_articles.csv", rows_of(*rows, header=header))
    report = world.ingest(load_spec(SPECS / "deskdrop.toml"))
    assert world.events()["type"].tolist() == ["comment", "view"]
    assert world.events()["weight"].tolist() == [4.0, 1.0]
    reasons = {("users_interactions.csv", 4): "unknown event type"}
    if articles:
        reasons["shared_articles.csv", 4] = "duplicate item_id: a later row replaces it"
    assert world.reasons() == reasons
    assert report.items == 2 * articles
    assert (world.workspace.spec().items is not None) == articles


@pytest.mark.parametrize("path", sorted(SPECS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_spec_can_be_read(path):
    assert load_spec(path).name == path.stem
