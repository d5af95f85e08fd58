"""An earlier ranker is trained on where it can be, and made anew where it cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ranking.config import RankerConfig, WarmStart
from ranking.metrics import ndcg_at_k
from ranking.models import load
from ranking.models.base import CannotContinue
from ranking.models.dcn import DcnRanker
from ranking.models.scorer import CalibratedRanker
from ranking.models.trees import TreeRanker
from ranking.report import RankerReport
from ranking.row_schema import RowSchema
from ranking.training.dcn_network import DcnNetwork
from ranking.training.dcn_weights import load_weights
from ranking.training.quantise import dynamic_int8
from ranking.training.train_rankers import train_rankers
from tests.support.planted_rows import CONFIG, SCHEMA, Trained, planted, splits

GROWN = replace(SCHEMA, cardinalities=(9, 4))
SHORT = WarmStart(Path(), rounds=10, steps=20, learning_rate=1e-3)


def go_on(
    folder: Path, earlier: Path, kind: str, schema: RowSchema = GROWN, config: RankerConfig = CONFIG
) -> tuple[RankerReport, dict[str, float]]:
    said: dict[str, float] = {}
    config, start = replace(config, kinds=(kind,)), replace(SHORT, folder=earlier)
    report = train_rankers(
        splits(schema), folder, config, lambda _, figures: said.update(figures), start=start
    )
    assert report.config == config
    return report, said


@pytest.mark.parametrize("kind", ["lambdarank", "lightgbm"])
def test_boosters_keep_their_trees_and_get_more(
    trained: Trained, tmp_path: Path, kind: str
) -> None:
    report, said = go_on(tmp_path, trained.folder / kind, kind)
    assert said["continued"] == 1.0
    earlier, later = load(trained.folder / kind), load(tmp_path / kind)
    assert isinstance(earlier, TreeRanker) and isinstance(later, TreeRanker)
    for old, new in zip(earlier.boosters, later.boosters, strict=True):
        grown = new.num_trees()
        assert old.num_trees() < grown <= old.num_trees() + 10
        rows = np.hstack([trained.validate.numeric, trained.validate.categorical])[:100]
        before = old.predict(rows, raw_score=True)
        np.testing.assert_allclose(
            new.predict(rows, raw_score=True, num_iteration=old.num_trees()), before
        )
    assert report.kinds[kind].ndcg == pytest.approx(trained.report.kinds[kind].ndcg, abs=0.05)


def test_the_network_begins_with_its_weights_and_new_codes_as_unknown(trained: Trained) -> None:
    earlier = load(trained.folder / "dcn")
    transform = earlier.transform  # type: ignore[attr-defined]
    width = len(transform.sources)
    shape = {
        "width": width,
        "bucket_counts": transform.bucket_counts,
        "cardinalities": GROWN.cardinalities,
        "heads": 2,
    }
    network = DcnNetwork(**shape, config=CONFIG.dcn)
    load_weights(network, GROWN, earlier)  # type: ignore[arg-type]
    assert network.category is not None
    table = network.category.table.weight.detach().numpy()
    assert (table[6:9] == table[0]).all() and (table[1] != table[0]).any()
    with pytest.raises(CannotContinue, match="another shape"):
        other = DcnNetwork(**shape, config=replace(CONFIG.dcn, hidden=(8,)))
        load_weights(other, GROWN, earlier)  # type: ignore[arg-type]


def test_the_network_goes_on_with_a_few_steps(trained: Trained, tmp_path: Path) -> None:
    report, said = go_on(tmp_path, trained.folder / "dcn", "dcn")
    assert said["continued"] == 1.0
    few = SHORT.shorten(replace(CONFIG, kinds=("dcn",)))
    anew = train_rankers(splits(GROWN), tmp_path / "anew", few, lambda *_: None)
    assert (report.kinds["dcn"].ndcg or 0) > (anew.kinds["dcn"].ndcg or 0)


def test_going_on_is_never_longer_than_anew() -> None:
    little = replace(
        CONFIG, trees=replace(CONFIG.trees, rounds=5), dcn=replace(CONFIG.dcn, learning_rate=1e-4)
    )
    assert SHORT.shorten(little).trees == little.trees
    assert (SHORT.shorten(little).dcn.learning_rate, SHORT.shorten(CONFIG).dcn.learning_rate) == (
        1e-4,
        1e-3,
    )


def test_a_network_of_integers_cannot_go_on(trained: Trained, tmp_path: Path) -> None:
    earlier = CalibratedRanker.load(trained.folder / "dcn")
    assert isinstance(earlier.ranker, DcnRanker)
    (tmp_path / "int8").mkdir()
    replace(earlier, ranker=dynamic_int8(earlier.ranker)).save(tmp_path / "int8")
    _, said = go_on(tmp_path, tmp_path / "int8", "dcn")
    assert said["continued"] == 0.0


@pytest.mark.parametrize(
    ("kind", "earlier", "change"),
    [
        ("dcn", "dcn", {"dcn": replace(CONFIG.dcn, hidden=(8,))}),
        ("logistic", "logistic", {}),
        ("lambdarank", "lightgbm", {}),
    ],
)
def test_what_cannot_go_on_is_trained_anew_and_says_so(
    trained: Trained, tmp_path: Path, kind: str, earlier: str, change: dict[str, object]
) -> None:
    config = replace(CONFIG, **change)  # type: ignore[arg-type]
    report, said = go_on(tmp_path, trained.folder / earlier, kind, config=config)
    assert said["continued"] == 0.0
    anew = train_rankers(
        splits(GROWN), tmp_path / "anew", replace(config, kinds=(kind,)), lambda *_: None
    )
    assert report.kinds[kind].ndcg == anew.kinds[kind].ndcg


def test_another_meaning_of_a_column_is_no_continuation(trained: Trained, tmp_path: Path) -> None:
    for schema in (replace(SCHEMA, cardinalities=(5, 4)), replace(SCHEMA, heads=("click", "like"))):
        assert not schema.extends(SCHEMA)
    renamed = replace(SCHEMA, numeric=("noise", "affinity", "item_events_30d", "age"))
    _, said = go_on(tmp_path, trained.folder / "lambdarank", "lambdarank", renamed)
    assert said["continued"] == 0.0


def test_a_finished_continuation_is_kept(trained: Trained, tmp_path: Path) -> None:
    go_on(tmp_path, trained.folder / "lambdarank", "lambdarank")
    _, said = go_on(tmp_path, trained.folder / "lambdarank", "lambdarank")
    assert said == {"resumed": 1.0}
    data = planted(4)
    scorer = load(tmp_path / "lambdarank")
    score = scorer.schema.score(scorer.predict(data.numeric, data.categorical))
    assert ndcg_at_k(data.relevance(SCHEMA), score, data.request, 10) > 0.4
