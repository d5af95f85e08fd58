"""An evaluation as tables for people."""

from __future__ import annotations

from pipelines import display
from pipelines.evaluation.figures import (
    BaselineFigures,
    Evaluation,
    Interval,
    PairedDifference,
)

_ACCURACY = ("recall@10", "mrr@10", "recall@100", "recall@500")
_LISTS = (
    "coverage@10",
    "novelty@10",
    "diversity@10",
    "category_diversity@10",
    "popularity@10",
    "gini@10",
)


def show(evaluation: Evaluation) -> None:
    """Print all tables of an evaluation."""
    _show_models(evaluation)
    _show_differences("NDCG@10 of the funnel minus that of", evaluation.funnel_minus)
    if evaluation.baselines:
        _show_baselines(evaluation.baselines)
    _show_slices(evaluation)
    _show_gaps(evaluation)
    if evaluation.ablations is not None:
        _show_differences(
            "Ablations: NDCG@10 of the funnel without ... minus that of the whole",
            evaluation.ablations,
        )
    if evaluation.against:
        other = evaluation.against
        _show_differences(
            f"Release {evaluation.release} minus {other.release}: {other.events} events",
            other.metrics,
        )


def _show_models(evaluation: Evaluation) -> None:
    """Print the accuracy of every model, the candidates' recall, and what the lists are like."""
    models = evaluation.models
    rows = []
    for name, metrics in models.items():
        bounds = _range(evaluation.intervals[name]["ndcg@10"])
        rows.append([name, metrics["ndcg@10"], bounds, *(metrics[one] for one in _ACCURACY)])
    title = f"{evaluation.data}: {evaluation.events} events, {evaluation.users} users"
    display.table(title, ["", "NDCG@10", "95%", *_ACCURACY], rows)

    recalls = ", ".join(f"{name} {value:.4f}" for name, value in evaluation.candidates.items())
    display.console.print(f"candidates: {recalls}")

    names = [name for name in _LISTS if name in models["funnel"]]
    display.table(
        "Lists",
        ["", *(name.removesuffix("@10") for name in names)],
        [[model, *(metrics[name] for name in names)] for model, metrics in models.items()],
    )


def _show_differences(title: str, pairs: dict[str, PairedDifference]) -> None:
    rows = [
        [
            name,
            pair.first,
            pair.second,
            f"{pair.difference:+.4f}",
            _range(pair.interval, " .. "),
            _p(pair.p_bootstrap),
            _p(pair.p_wilcoxon),
        ]
        for name, pair in pairs.items()
    ]
    columns = ["", "first", "second", "difference", "95%", "p bootstrap", "p Wilcoxon"]
    display.table(title, columns, rows)


def _show_baselines(baselines: BaselineFigures) -> None:
    for name, search in baselines.settings.items():
        chosen = ", ".join(f"{key} {value}" for key, value in search.chosen.items())
        best = max(tried["ndcg@10"] for tried in search.validation)
        display.console.print(
            f"{name}: {chosen} (NDCG@10 {best:.4f} on validation, best of {len(search.validation)})"
        )
        if search.unfinished:
            display.console.print(
                f"{name}: no time, or too little, for {search.unfinished} settings: "
                "give more --peer-minutes"
            )
    for name, reason in baselines.left_out.items():
        display.console.print(f"{name} was left out: {reason}")


def _show_slices(evaluation: Evaluation) -> None:
    rivals = [name for name in evaluation.models if name not in ("funnel", "oracle")]
    rows = []
    for dimension, values in evaluation.slices.items():
        for value, figures in values.items():
            best = max(rivals, key=lambda name: figures.ndcg[name]) if figures.events else ""
            rows.append(
                [
                    f"{dimension}: {value}",
                    figures.events,
                    figures.users,
                    figures.ndcg["funnel"],
                    _range(figures.interval),
                    figures.ndcg.get(best, 0.0),
                    best,
                ]
            )
    display.table("Slices", ["", "events", "users", "NDCG@10", "95%", "best other", ""], rows)


def _show_gaps(evaluation: Evaluation) -> None:
    rows = [
        [name, gap.gap, _range(gap.interval, " .. "), gap.highest, gap.lowest]
        for name, gap in evaluation.gaps.items()
    ]
    if rows:
        display.table(
            "Gaps between values with 50 events", ["", "gap", "95%", "highest", "lowest"], rows
        )


def _range(bounds: Interval | None, between: str = "-") -> str:
    return between.join(f"{bound:.3f}".replace("0.", ".", 1) for bound in bounds) if bounds else ""


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}"
