"""Lists in pages, as OpenAI's routes have them: `limit`, `order` and `after`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from motet.core.errors import InvalidRequest

DEFAULT_LIMIT = 20
T = TypeVar("T")


@dataclass(frozen=True)
class Page:
    """What part of a list is asked for. `after` is the id of the entry before it."""

    limit: int
    newest_first: bool
    after: str | None

    @classmethod
    def of(cls, query: Mapping[str, str], most: int = 100, limit: int = DEFAULT_LIMIT) -> Page:
        """The page that a query string asks for. Raises InvalidRequest naming the parameter that is wrong."""
        asked, order = query.get("limit", str(limit)), query.get("order", "desc")
        if not (asked.isascii() and asked.isdigit() and len(asked) < 9 and 1 <= int(asked) <= most):
            raise InvalidRequest(f"limit must be a number from 1 to {most}", param="limit")
        if order not in ("asc", "desc"):
            raise InvalidRequest("order must be asc or desc", param="order")
        return cls(int(asked), order == "desc", query.get("after"))


def page_of(entries: Sequence[T], page: Page, id_of: Callable[[T], str]) -> tuple[list[T], bool]:
    """The page's entries, of all that there are from the oldest to the newest, and whether more follow.

    Raises InvalidRequest if no entry has the id `after`.
    """
    ordered = list(reversed(entries)) if page.newest_first else list(entries)
    if page.after is not None:
        place = next((i for i, entry in enumerate(ordered) if id_of(entry) == page.after), None)
        if place is None:
            raise InvalidRequest("nothing in the list has this id", param="after")
        ordered = ordered[place + 1 :]
    return ordered[: page.limit], len(ordered) > page.limit


def page_rows(
    connection: sqlite3.Connection, select: tuple[str, str], page: Page, where: Mapping[str, str]
) -> tuple[list[bytes], bool]:
    """The page of a table whose rows have an `id` and count up in `number`, and whether more follow.

    `select` is (column, table), `where` what other columns must be. Raises InvalidRequest if none of these rows has
    the id `after`.
    """
    column, table = select
    wanted = " AND ".join(f"{name} = ?" for name in where)
    values: list[object] = list(where.values())
    if page.after is not None:
        query = f"SELECT number FROM {table} WHERE {wanted} AND id = ?"
        place = connection.execute(query, (*values, page.after)).fetchone()
        if place is None:
            raise InvalidRequest("nothing in the list has this id", param="after")
        wanted += f" AND number {'<' if page.newest_first else '>'} ?"
        values.append(place[0])
    order = "DESC" if page.newest_first else "ASC"
    query = f"SELECT {column} FROM {table} WHERE {wanted} ORDER BY number {order} LIMIT ?"
    rows = connection.execute(query, (*values, page.limit + 1)).fetchall()
    return [row[0] for row in rows[: page.limit]], len(rows) > page.limit
