"""What was read of a source and what was not: kept with the rows, and shown by `molrmog info`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Fate = Literal["used", "label", "left out", "refused"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table, and what became of it.

    Attributes:
        name: of the column.
        type: of its values, as the file has it.
        fate: "used", "label", "left out" or "refused".
        why: for what reason it is not used, or how.
        width: coordinates that it gives a row.
    """

    name: str
    type: str
    fate: Fate = "used"
    why: str = ""
    width: int = 1


@dataclass(frozen=True, kw_only=True)
class Account:
    """What was read of a source, and what was not.

    Attributes:
        kind: of the source, such as "CSV" or "pictures".
        columns: of a table, in the order of the file; empty where it is none.
        notes: what was left out or decided, a clause each; empty where all was used as it is.
    """

    kind: str = ""
    columns: tuple[Column, ...] = ()
    notes: tuple[str, ...] = ()

    def noted(self, before: Sequence[str] = (), after: Sequence[str] = ()) -> Account:
        """The same account with more notes, empty ones passed over."""
        notes = tuple(note for note in (*before, *self.notes, *after) if note)
        return replace(self, notes=notes)


NOTHING_LEFT_OUT = Account()


class Refused(ValueError):
    """A table with columns that cannot be rows.

    Attributes:
        account: of all its columns.
    """

    def __init__(self, message: str, account: Account) -> None:
        super().__init__(message)
        self.account = account


def listed(names: Sequence[str], most: int = 5) -> str:
    """Names with commas between, cut where they are many."""
    shown = ", ".join(_short(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _short(name: str) -> str:
    plain = " ".join(name.split()) or repr(name)
    return plain if len(plain) <= 60 else plain[:57] + "..."
