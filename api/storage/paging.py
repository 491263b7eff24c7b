"""Pages of lists with OpenAI's query parameters: `limit`, `order` and `after`."""

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
    """The requested part of a list. `after` is the id of the entry before it."""

    limit: int
    newest_first: bool
    after: str | None

    @classmethod
    def of(cls, query: Mapping[str, str], max_limit: int = 100, limit: int = DEFAULT_LIMIT) -> Page:
        """The page that a query string requests. Raises InvalidRequest with the parameter that is wrong."""
        requested, order = query.get("limit", str(limit)), query.get("order", "desc")
        if not (
            requested.isascii() and requested.isdigit() and len(requested) < 9 and 1 <= int(requested) <= max_limit
        ):
            raise InvalidRequest(f"limit must be a number from 1 to {max_limit}", param="limit")
        if order not in ("asc", "desc"):
            raise InvalidRequest("order must be asc or desc", param="order")
        return cls(int(requested), order == "desc", query.get("after"))


def page_of(entries: Sequence[T], page: Page, id_of: Callable[[T], str]) -> tuple[list[T], bool]:
    """The page of `entries`, which are sorted from the oldest to the newest, and whether more follow.

    Raises InvalidRequest if no entry has the id `after`.
    """
    ordered = list(reversed(entries)) if page.newest_first else list(entries)
    if page.after is not None:
        index = next((i for i, entry in enumerate(ordered) if id_of(entry) == page.after), None)
        if index is None:
            raise InvalidRequest("no entry of the list has this id", param="after")
        ordered = ordered[index + 1 :]
    return ordered[: page.limit], len(ordered) > page.limit


def page_rows(
    connection: sqlite3.Connection, select: tuple[str, str], page: Page, where: Mapping[str, str]
) -> tuple[list[bytes], bool]:
    """The page of a table with the columns `id` and an ascending `number`, and whether more follow.

    `select` is (column, table); `where` has the required values of other columns. Raises InvalidRequest if none of
    these rows has the id `after`.
    """
    column, table = select
    condition = " AND ".join(f"{name} = ?" for name in where)
    values: list[object] = list(where.values())
    if page.after is not None:
        query = f"SELECT number FROM {table} WHERE {condition} AND id = ?"
        row = connection.execute(query, (*values, page.after)).fetchone()
        if row is None:
            raise InvalidRequest("no entry of the list has this id", param="after")
        condition += f" AND number {'<' if page.newest_first else '>'} ?"
        values.append(row[0])
    order = "DESC" if page.newest_first else "ASC"
    query = f"SELECT {column} FROM {table} WHERE {condition} ORDER BY number {order} LIMIT ?"
    rows = connection.execute(query, (*values, page.limit + 1)).fetchall()
    return [row[0] for row in rows[: page.limit]], len(rows) > page.limit
