"""Counts the stored bytes that `--max-files` limits: in total, and per owner (an API key's name).

Triggers update the owners' counts as rows are added and deleted, so that a lookup does not scan the tables.
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass

_OWNERS = "CREATE TABLE IF NOT EXISTS owner_bytes (owner TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID"


@dataclass(frozen=True)
class Counted:
    """A table whose rows are counted. `size` and `owner` are SQL, in which {row} stands for a row."""

    table: str
    size: str
    owner: str = "{row}.owner"


def count_by_owner(connection: sqlite3.Connection, counted: Counted) -> None:
    """Count the existing rows of a table and create its triggers; does nothing if the table has them.

    Do not use REPLACE on the table: SQLite fires no trigger for it.
    """
    table = counted.table
    if _exists(connection, f"{table}_counted_insert"):
        return
    connection.execute(_OWNERS)
    rows = f"SELECT {counted.owner} AS owner, {counted.size} AS bytes FROM {table}".format(row=table)
    for owner, size in connection.execute(f"SELECT owner, SUM(bytes) FROM ({rows}) GROUP BY owner").fetchall():
        connection.execute("INSERT OR IGNORE INTO owner_bytes VALUES (?, 0)", (owner,))
        connection.execute("UPDATE owner_bytes SET bytes = bytes + ? WHERE owner = ?", (size, owner))
    new, old = counted.size.format(row="NEW"), counted.size.format(row="OLD")
    for event, row, change, when in (
        ("insert", "NEW", f"({new})", ""),
        ("update", "NEW", f"({new}) - ({old})", f"WHEN ({new}) <> ({old})"),
        ("delete", "OLD", f"-({old})", ""),
    ):
        owner = counted.owner.format(row=row)
        connection.execute(
            f"""CREATE TRIGGER {table}_counted_{event} AFTER {event} ON {table} {when} BEGIN
                INSERT OR IGNORE INTO owner_bytes VALUES ({owner}, 0);
                UPDATE owner_bytes SET bytes = bytes + {change} WHERE owner = {owner};
            END"""
        )


def used(connection: sqlite3.Connection) -> int:
    """Bytes in use: the database's pages that are not free, the files, and the reservations of uploads."""
    pages, free, size = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    total = (pages - free) * size
    for table, condition in (("files", "1"), ("uploads", f"until > {time.time()}")):
        if _exists(connection, table):
            query = f"SELECT COALESCE(SUM(MAX(bytes, ?)), 0) FROM {table} WHERE {condition}"
            total += int(connection.execute(query, (size,)).fetchone()[0])
    return total


def used_by(connection: sqlite3.Connection, owner: str) -> int:
    """Bytes that the owner's files, batches, responses and reservations of uploads use."""
    total = 0
    if _exists(connection, "owner_bytes"):
        row = connection.execute("SELECT bytes FROM owner_bytes WHERE owner = ?", (owner,)).fetchone()
        total += row[0] if row else 0
    if _exists(connection, "uploads"):
        query = "SELECT COALESCE(SUM(bytes), 0) FROM uploads WHERE owner = ? AND until > ?"
        total += connection.execute(query, (owner, time.time())).fetchone()[0]
    return total


def _exists(connection: sqlite3.Connection, name: str) -> bool:
    """Whether there is a table or trigger of this name."""
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name,)).fetchone() is not None
