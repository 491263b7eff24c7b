"""The states of a batch and the transitions between them.

    validating ─┬─ failed
                └─ in_progress ── finalizing ─┬─ completed
                        │             │       ├─ expired
                   cancelling ────────┘       ├─ failed
                                              └─ cancelled

Each transition returns the changed batch, or the same batch if its state does not allow the transition.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from msgspec.structs import replace

from motet.api.batches.objects import BatchError, BatchErrors, BatchObject, RequestCounts
from motet.core.errors import Conflict

ACTIVE = ("validating", "in_progress", "finalizing", "cancelling")
"""The states of a batch that still has work to do."""

FinalStatus: TypeAlias = Literal["completed", "expired", "cancelled", "failed"]


def validated(batch: BatchObject, line_count: int, errors: Sequence[BatchError]) -> BatchObject:
    """After its input was checked: `in_progress`, or `failed` if there are errors or no lines."""
    if batch.status != "validating":
        return batch
    now = int(time.time())
    if errors or not line_count:
        return replace(batch, status="failed", failed_at=now, errors=BatchErrors(data=list(errors)))
    return replace(batch, status="in_progress", in_progress_at=now, request_counts=RequestCounts(line_count))


def cancelling(batch: BatchObject) -> BatchObject:
    """After a request to cancel it. Raises Conflict if it has ended or is about to."""
    if batch.status in ("cancelling", "cancelled"):
        return batch
    if batch.status not in ("validating", "in_progress"):
        raise Conflict(f"the batch is already {batch.status}", param="batch_id")
    return replace(batch, status="cancelling", cancelling_at=int(time.time()))


def finalizing(batch: BatchObject, final: FinalStatus, errors: Sequence[BatchError]) -> BatchObject:
    """Before its output files are written: stores which state comes next. A cancellation has priority over `final`."""
    if batch.status not in ("in_progress", "cancelling"):
        return batch
    now = int(time.time())
    changes: dict[str, Any] = {"status": "finalizing", "finalizing_at": now}
    if batch.status != "cancelling" and final != "completed":
        changes |= {f"{final}_at": now, "errors": BatchErrors(data=list(errors)) if errors else None}
    return replace(batch, **changes)


def ended(batch: BatchObject, output_files: Mapping[str, str]) -> BatchObject:
    """After its output files were written; `output_files` are the fields with their ids."""
    if batch.status != "finalizing":
        return batch
    status = _final_status(batch)
    changes: dict[str, Any] = {**output_files, "status": status, f"{status}_at": int(time.time())}
    return replace(batch, **changes)


def _final_status(batch: BatchObject) -> FinalStatus:
    """The state that `finalizing` has stored."""
    if batch.failed_at:
        return "failed"
    if batch.expired_at:
        return "expired"
    return "cancelled" if batch.cancelling_at else "completed"
