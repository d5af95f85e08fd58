"""MovieLens-1M as RecBole's context-aware benchmark has it.

Rating 3 dropped, 4 and 5 are 1, the rest 0.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from feature_repo.arrays import Int64Array
from feature_repo.dataset import SpecError
from ranking.collaborative import LabelledPairs, SideInformation
from ranking.data import RankingData
from ranking.row_schema import RowSchema

_FILES = {
    "ratings.dat": ["user", "item", "rating", "time"],
    "users.dat": ["user", "gender", "age", "occupation", "zip"],
    "movies.dat": ["item", "title", "genres"],
}
_YEARS_A_GROUP = 8


@dataclass(frozen=True)
class MovieLens:
    """Labelled pairs and the fields of users and items.

    ``fields``: by name the code of each pair, int64 ``[n]``; ``genres`` float32 ``[items, G]``, by
    name of ``tags``.
    """

    pairs: LabelledPairs
    sides: SideInformation
    fields: dict[str, Int64Array]
    genres: tuple[str, ...]

    def split(self, seed: int) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Return rows of train, validation and test, eight to one to one at random."""
        order = np.random.default_rng(seed).permutation(len(self.pairs))
        ends = [int(share * len(order)) for share in (0.8, 0.9)]
        first, second, third = (np.sort(part) for part in np.split(order, ends))
        return first, second, third

    def schema(self) -> RowSchema:
        """Return the columns of ``rows``: genres as numbers, all else as codes."""
        sizes = tuple(int(codes.max()) + 2 for codes in self.fields.values())
        return RowSchema(self.genres, tuple(self.fields), sizes, ("liked",), (1.0,))

    def rows(self, chosen: Int64Array) -> RankingData:
        """Return the pairs' fields as a ranker reads them; code 0 stands for unknown."""
        assert self.sides.tags is not None
        codes = np.stack([values[chosen] + 1 for values in self.fields.values()], axis=1).astype(
            np.int32
        )
        labels = self.pairs.label[chosen][:, None]
        return RankingData(
            self.sides.tags[self.pairs.item[chosen]], codes, labels, np.arange(len(chosen))
        )


def read_movielens(folder: Path) -> MovieLens:
    """Read ``ratings.dat``, ``users.dat`` and ``movies.dat``.

    Raises:
        SpecError: a file is missing or not as MovieLens-1M has it.

    """
    ratings, users, movies = (_read(folder / name, columns) for name, columns in _FILES.items())
    value = _numbers(ratings["rating"], folder / "ratings.dat")
    ratings, value = ratings[value != 3], value[value != 3]
    if not len(ratings):
        raise SpecError(f"{folder / 'ratings.dat'} has no rating other than 3")
    user, known_users = pd.factorize(ratings["user"], sort=True)
    item, known_items = pd.factorize(ratings["item"], sort=True)
    users, movies = (
        users.drop_duplicates("user", keep="last"),
        movies.drop_duplicates("item", keep="last"),
    )
    users = _described(users.set_index("user"), known_users, folder / "users.dat")
    movies = _described(movies.set_index("item"), known_items, folder / "movies.dat")
    groups = {
        name: pd.factorize(users[name], sort=True)[0].astype(np.int64)
        for name in ("age", "gender", "occupation")
    }
    written = movies["title"].str.extract(r"\((\d{4})\)\s*$")[0].fillna("0").astype(int)
    year = _codes(written)
    genres = movies["genres"].str.get_dummies("|")
    sides = SideInformation(
        users=len(known_users),
        items=len(known_items),
        user_groups=groups,
        item_groups={"years": year // _YEARS_A_GROUP},
        tags=genres.to_numpy(np.float32),
    )
    fields = {
        "user": user,
        "item": item,
        **{name: codes[user] for name, codes in groups.items()},
        "year": year[item],
    }
    pairs = LabelledPairs(
        user.astype(np.int64), item.astype(np.int64), (value >= 4).to_numpy(np.float32)
    )
    return MovieLens(pairs, sides, fields, tuple(genres.columns))


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    if not path.is_file():
        raise SpecError(f"{path} is missing: the folder needs {', '.join(_FILES)} of MovieLens-1M")
    # One character parts fields then, which is read fifty times faster than two.
    text = path.read_text(encoding="latin-1").replace("::", "\t")
    try:
        return pd.read_csv(
            io.StringIO(text), sep="\t", names=columns, dtype=str, quoting=3, keep_default_na=False
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise SpecError(f"{path} is not lines of '{'::'.join(columns)}': {error}") from None


def _codes(values: pd.Series) -> Int64Array:
    return pd.factorize(values, sort=True)[0].astype(np.int64)


def _numbers(values: pd.Series, path: Path) -> pd.Series:
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.isna().any():
        row = int(np.flatnonzero(numbers.isna())[0])
        raise SpecError(f"{path}, line {row + 1}: rating '{values.iloc[row]}' is not a number")
    return numbers


def _described(table: pd.DataFrame, wanted: pd.Index, path: Path) -> pd.DataFrame:
    missing = wanted.difference(table.index)
    if len(missing):
        raise SpecError(
            f"{path} lacks '{missing[0]}' and {len(missing) - 1} more that ratings.dat has"
        )
    return table.loc[wanted]
