"""What is left of a server's capacity when more is asked of it than it can do.

Full answers are those that did not fall back on popular items. The sender runs on the same cores.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.load import Load, load
from pipelines import display

_TIMES = (1.5, 3.0, 10.0)
_CONNECTIONS = (16, 24, 32, 64)
_SENDERS = 128
_RECOVERY_S = 3.0
_ROUNDS = 3


def overload(port: int, requests: list[bytes], *, pid: int, seconds: float) -> dict[str, Any]:
    """Measure a server above its capacity, and return the figures.

    What is compared is measured in turns, since the speed of a shared machine drifts.

    Args:
        port: where it listens.
        requests: whole HTTP requests.
        pid: of the server's parent process.
        seconds: duration of each load, over all its rounds.

    """
    figures: dict[str, Any] = {}
    part_s = seconds / _ROUNDS
    for times in _TIMES:
        capacity, over = Load(), Load()
        served_s = spent = 0.0
        for _ in range(_ROUNDS):
            before = processor_s(pid)
            capacity.add(one := load(port, requests, connections=16, seconds=part_s))
            between = processor_s(pid)
            rate = times * one.full_rps
            over.add(load(port, requests, connections=_SENDERS, seconds=part_s, rate=rate))
            served_s += between - before
            spent += processor_s(pid) - between
        # A refusal's processor time: what is left after what accepted requests take at capacity.
        spent -= served_s * len(over.seconds) / max(1, len(capacity.seconds))
        refused = over.statuses[503]
        figures |= {
            f"capacity_rps_{times:g}x": capacity.full_rps,
            f"goodput_{times:g}x": round(over.full_rps / capacity.full_rps, 3),
            f"p99_ms_{times:g}x": over.percentile(99),
            f"refused_{times:g}x": refused,
            f"refusal_us_{times:g}x": round(1e6 * spent / refused) if refused else None,
        }
    full = capacity.full_rps

    # Right after the worst: the share of full answers once a second has passed.
    load(port, requests, connections=_SENDERS, seconds=1.0, rate=_TIMES[-1] * full)
    load(port, requests, connections=16, seconds=1.0, rate=0.8 * full)
    after = load(port, requests, connections=16, seconds=_RECOVERY_S, rate=0.8 * full)
    figures["full_after_1s"] = round((len(after.seconds) - after.popular) / _sent(after), 3)

    closed = {count: Load() for count in _CONNECTIONS}
    for _ in range(_ROUNDS):
        for count, answers in closed.items():
            answers.add(load(port, requests, connections=count, seconds=part_s, patient=True))
    rates = {str(count): answers.full_rps for count, answers in closed.items()}
    figures["closed_loop_rps"] = rates
    figures["closed_loop_worst"] = round(min(rates.values()) / max(rates.values()), 3)
    _show(figures)
    return figures


def processor_s(pid: int) -> float:
    """Return the processor time of a process and its children so far, in seconds."""
    ticks = 0
    for one in family(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """Return the process ids of a process and its descendants."""
    pids = [pid]
    for parent in pids:  # grows while it is walked
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        pids += [int(child) for child in children]
    return pids


def _sent(answers: Load) -> int:
    return max(1, sum(answers.statuses.values()))


def _show(figures: dict[str, Any]) -> None:
    table = Table(title="Above capacity", title_justify="left")
    for column in ("load", "full answers / capacity", "p99 ms", "refused", "us a refusal"):
        table.add_column(column, justify="left" if column == "load" else "right")
    for times in _TIMES:
        name = f"{times:g}x"
        row = [figures[f"{what}_{name}"] for what in ("goodput", "p99_ms", "refused", "refusal_us")]
        table.add_row(name, *map(str, row))
    display.console.print(table)
