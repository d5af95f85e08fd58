"""Writes margins.parquet beside this file, for the items of an items.csv: a table of yours.

It has a number and a vector of each item. The vector stands for what a text or image model gives;
here it adds random directions of the title's words.

python examples/features/margins.py work/synthetic/raw/items.csv
"""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

SIZE = 16


def main(items: str) -> None:
    """Give every item a margin and a vector of its title that have been known for a year."""
    table = pd.read_csv(items)[["item_id", "title"]]
    draw = np.random.default_rng(17)
    titles = [title.split() for title in table.pop("title")]
    words = {word: draw.normal(size=SIZE) for title in titles for word in title}
    table["known_from"] = datetime.now(UTC) - timedelta(days=365)
    table["margin"] = draw.uniform(0.05, 0.6, size=len(table)).round(2)
    table["title_vector"] = [
        np.sum([words[word] for word in title], axis=0).astype(np.float32) for title in titles
    ]
    table.to_parquet(Path(__file__).with_name("margins.parquet"), index=False)


if __name__ == "__main__":
    main(sys.argv[1])
