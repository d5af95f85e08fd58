"""What every storage location of user data offers to an erasure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from typing import Protocol

from feature_repo.errors import FunnelError


class LocationUnavailable(FunnelError):
    """A storage location cannot be searched or changed at present; the message says what to do."""


class StorageLocation(Protocol):
    """One kind of stored data in which erased users may be found."""

    @property
    def name(self) -> str:
        """The location's name in the proof."""

    def find(self) -> Counter[str]:
        """Return the number of rows, keys or entries of each erased user who is found.

        Raises:
            LocationUnavailable: it cannot be searched at present.

        """

    def remove(self, users: Set[str]) -> None:
        """Remove the data of users.

        Raises:
            LocationUnavailable: it cannot be changed at present.

        """


@dataclass(frozen=True)
class BusyLocation:
    """A storage location that another command writes at present: what it brings is not known."""

    name: str
    reason: str

    def find(self) -> Counter[str]:
        """Say that the location cannot be searched."""
        raise LocationUnavailable(self.reason)

    def remove(self, users: Set[str]) -> None:
        """Leave the location to the other command."""
