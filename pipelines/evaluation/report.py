"""An evaluation as tables for people."""

from __future__ import annotations

from typing import Any

from pipelines import display

_ACCURACY = ("recall@10", "mrr@10", "recall@100", "recall@500")
_LISTS = (
    "coverage@10",
    "novelty@10",
    "diversity@10",
    "category_diversity@10",
    "popularity@10",
    "gini@10",
)


def show(figures: dict[str, Any]) -> None:
    """Print all tables of an evaluation."""
    models = figures["models"]
    title = f"{figures['data']}: {figures['events']} events, {figures['users']} users"
    intervals = figures["intervals"]
    rows = [[name, of["ndcg@10"], _range(intervals[name]["ndcg@10"]), *(of[m] for m in _ACCURACY)]
            for name, of in models.items()]  # fmt: skip
    display.table(title, ["", "NDCG@10", "95%", *_ACCURACY], rows)
    candidates = ", ".join(f"{name} {value:.4f}" for name, value in figures["candidates"].items())
    display.console.print(f"candidates: {candidates}")
    names = [name for name in _LISTS if name in models["funnel"]]
    display.table("Lists", ["", *(name.removesuffix("@10") for name in names)],
                  [[model, *(of[name] for name in names)] for model, of in models.items()])  # fmt: skip
    pairs = figures["funnel_minus"]
    _differences("NDCG@10 of the funnel minus that of", pairs)
    _show_baselines(figures["baselines"])
    _show_slices(figures)
    if "ablations" in figures:
        _differences(
            "Ablations: NDCG@10 of the funnel without ... minus that of the whole",
            figures["ablations"],
        )
    if "against" in figures:
        other = figures["against"]
        title = f"Release {figures['release']} minus {other['release']}: {other['events']} events"
        _differences(title, other["metrics"])


def _differences(title: str, pairs: dict[str, Any]) -> None:
    rows = [
        [name, of["first"], of["second"], f"{of['difference']:+.4f}", _range(of["interval"], " .. "),
         _p(of["p_bootstrap"]), _p(of["p_wilcoxon"])]
        for name, of in pairs.items()
    ]  # fmt: skip
    display.table(
        title, ["", "first", "second", "difference", "95%", "p bootstrap", "p Wilcoxon"], rows
    )


def _show_baselines(baselines: dict[str, Any] | None) -> None:
    if baselines is None:
        return
    for name, of in baselines["settings"].items():
        chosen = ", ".join(f"{key} {value}" for key, value in of["chosen"].items())
        best = max(tried["ndcg@10"] for tried in of["validation"])
        display.console.print(
            f"{name}: {chosen} (NDCG@10 {best:.4f} on validation, best of {len(of['validation'])})"
        )
        if unfinished := of.get("unfinished"):
            display.console.print(
                f"{name}: {unfinished} settings had no time, or too little: --peer-minutes"
            )
    for name, reason in baselines["left_out"].items():
        display.console.print(f"{name} was left out: {reason}")


def _show_slices(figures: dict[str, Any]) -> None:
    rivals = [name for name in figures["models"] if name not in ("funnel", "oracle")]
    rows = []
    for dimension, values in figures["slices"].items():
        for value, of in values.items():
            best = max(rivals, key=lambda name: of["ndcg@10"][name]) if of["events"] else ""
            found = [
                of["ndcg@10"]["funnel"],
                _range(of["interval"]),
                of["ndcg@10"].get(best, 0.0),
                best,
            ]
            rows.append([f"{dimension}: {value}", of["events"], of["users"], *found])
    display.table("Slices", ["", "events", "users", "NDCG@10", "95%", "best other", ""], rows)
    rows = [
        [name, of["gap"], _range(of["interval"], " .. "), of["highest"], of["lowest"]]
        for name, of in figures["gaps"].items()
    ]
    if rows:
        display.table(
            "Gaps between values with 50 events", ["", "gap", "95%", "highest", "lowest"], rows
        )


def _range(bounds: list[float] | None, between: str = "-") -> str:
    return between.join(f"{bound:.3f}".replace("0.", ".", 1) for bound in bounds) if bounds else ""


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}"
