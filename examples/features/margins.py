"""Writes margins.parquet beside this file, for the items of an items.csv: a table of yours.

python examples/features/margins.py work/synthetic/raw/items.csv
"""

import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd


def main(items: str) -> None:
    """Give every item a margin that has been known for a year."""
    ids = pd.read_csv(items)["item_id"]
    draw = random.Random(17)
    table = pd.DataFrame(
        {
            "item_id": ids,
            "known_from": datetime.now(UTC) - timedelta(days=365),
            "margin": [round(draw.uniform(0.05, 0.6), 2) for _ in ids],
        }
    )
    table.to_parquet(Path(__file__).with_name("margins.parquet"), index=False)


if __name__ == "__main__":
    main(sys.argv[1])
