"""Samples the next token of every row: penalties, bias, masks, temperature, then a draw. Rows are independent.

A row's draw depends only on its own seed and output position, its penalties only on its own tokens. Logprobs are the
model's, before any of these changes. All rows are handled at once, and nothing waits for the device but
`SampledRows.read`. N is rows, V the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from motet.core.messages import AddRequest
from motet.core.sampling_params import MAX_TOP_LOGPROBS, SamplingParams
from motet.engine.decode_graphs import Recorder, Recording
from motet.engine.sampling.sampling_batch import ReportedRows, SamplingBatch, is_capturable, stage_batch
from motet.engine.sampling.token_table import TokenTable
from motet.engine.sampling.top_k_top_p import DrawParameters, draw_tokens
from motet.engine.schedule.priority import Precedence
from motet.engine.schedule.sequence import Sequence
from motet.engine.staging import StagingBuffer, upload


@dataclass(frozen=True)
class SampledToken:
    """The token that one row sampled; `logprob` and `top` are set if the request has logprobs."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class RowLogprobs:
    """The model's logprobs [L, V] of the rows that report them; the top ids [L, k] with theirs, if a row needs them."""

    logprobs: Tensor
    top_ids: Tensor | None
    top_logprobs: Tensor | None


class SampledRows:
    """The sampled ids [N] int32, on the device; `read` waits for them."""

    def __init__(self, ids: Tensor, reported: ReportedRows | None = None, logprobs: RowLogprobs | None = None) -> None:
        """Begin to copy the ids, and the logprobs of the rows `reported`, to the host, in one piece."""
        self.ids = ids
        self._top_counts = reported.top_counts if reported is not None else []
        self._parts = [ids]
        if reported is not None and logprobs is not None:
            chosen = ids.index_select(0, reported.rows).long()
            self._parts.append(logprobs.logprobs.gather(1, chosen[:, None]))
            if logprobs.top_ids is not None and logprobs.top_logprobs is not None:
                self._parts += [logprobs.top_ids.int(), logprobs.top_logprobs]
        self._copied: torch.cuda.Event | None = None
        if ids.device.type == "cuda":
            pieces = [part.view(torch.int32).flatten() for part in self._parts]
            packed = torch.cat(pieces) if len(pieces) > 1 else ids
            self._host = packed.to("cpu", non_blocking=True)  # into pinned memory
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> list[SampledToken]:
        """The sampled tokens, in the order of the rows."""
        ids, *others = self._arrays()
        sampled = [SampledToken(token) for token in ids.tolist()]
        if not others:
            return sampled
        logprobs, *best = others
        for i, (j, count) in enumerate(self._top_counts):
            top = zip(*(array[i, :count].tolist() for array in best), strict=True) if best else ()
            sampled[j] = SampledToken(sampled[j].token, float(logprobs[i, 0]), tuple(top))
        return sampled

    def _arrays(self) -> list[npt.NDArray[Any]]:
        """The parts on the host. On the CPU nothing has been copied."""
        if self._copied is None:
            return [part.numpy() for part in self._parts]
        self._copied.synchronize()
        arrays: list[npt.NDArray[Any]] = []
        pieces = self._host.split([part.numel() for part in self._parts])
        for piece, part in zip(pieces, self._parts, strict=True):
            arrays.append(piece.view(part.dtype).view(part.shape).numpy())
        return arrays


class Sampler:
    """Samples tokens, and stores token counts and biases of requests between steps until `forget`."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.vocab_size, self._device = vocab_size, device
        self._table = TokenTable(vocab_size, self._device)
        self._recorded: dict[int, Recording] = {}  # by the number of rows

    def stage(self, rows: list[Sequence], staging: StagingBuffer, logits_rows: int = 0) -> SamplingBatch:
        """Put what the device needs to sample a token for each of `rows`.

        `logits_rows` is the number of rows of recorded logits, 0 if the logits are not recorded. A recorded draw is
        used if there is one, a row draws, and none needs more than that.
        """
        is_recorded = (
            logits_rows in self._recorded
            and any(row.request.params.temperature > 0 for row in rows)
            and all(map(is_capturable, rows))
        )
        batch = stage_batch(rows, staging, self._table, logits_rows if is_recorded else None)
        return replace(batch, recorded_rows=logits_rows) if is_recorded else batch

    @torch.inference_mode()
    def record(self, logits: Tensor, staging: StagingBuffer, recorder: Recorder) -> None:
        """Record the draw from recorded logits [N, V], whatever the rows' temperatures and truncations are.

        The caller has put the numbers of a recorded step of N rows, as before each `stage`.
        """
        batch = stage_batch([], staging, self._table, len(logits))
        staging.send()
        self.sample_ids(logits.clone(), batch)  # compiles and allocates what a graph may not
        self._recorded[len(logits)] = recorder(lambda: self.sample_ids(logits, batch))

    @torch.inference_mode()
    def __call__(self, logits: Tensor, batch: SamplingBatch, masks: dict[int, Tensor]) -> SampledRows:
        """Begin to sample a token per row of logits [N, V] (fp32, changed in place).

        masks[j] (bool [V], on the host) has the ids that row j's grammar allows.
        """
        if batch.recorded_rows:
            recording = self._recorded[batch.recorded_rows]
            recording.replay()
            assert recording.output is not None, "a draw has ids"
            return SampledRows(recording.output[: len(batch.rows)])
        logits = logits.contiguous()
        logprobs = _row_logprobs(logits, batch.reported) if batch.reported is not None else None
        if batch.adjusted is not None:
            self._table.adjust(logits, batch.adjusted)
        if masks or batch.below_min_tokens:
            self._exclude(logits, batch, masks)
        ids = self.sample_ids(logits, batch)
        if batch.adjusted is not None and batch.adjusted.num_penalised:
            self._table.count(ids, batch.adjusted)
        return SampledRows(ids, batch.reported, logprobs)

    @torch.inference_mode()
    def sample_ids(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        """The ids [N] int32 of logits [N, V] (fp32, contiguous, changed in place), for rows that are capturable.

        It can be captured in a graph: shapes depend on N alone, and the host reads nothing from the device.
        """
        return _next_ids(logits, batch.draw)

    def warm_up(self, staging: StagingBuffer) -> None:
        """Compile the kernels, so that no request waits for it."""
        for typical_p in (1.0, 0.5):
            params = SamplingParams(max_tokens=1, repetition_penalty=2.0, typical_p=typical_p)
            request = AddRequest("warm-up", (0,), params)
            row = Sequence(request, b"", Precedence(0, 0, 0), 0.0, params.max_tokens, num_unread=1)
            staging.begin()
            batch = self.stage([row], staging)
            staging.send()
            self(torch.zeros(1, self.vocab_size, device=self._device), batch, {}).read()
            self.forget(row.id)

    def forget(self, id: str) -> None:
        """Drop the state of a request that has ended."""
        self._table.forget(id)

    def _exclude(self, logits: Tensor, batch: SamplingBatch, masks: dict[int, Tensor]) -> None:
        """Exclude what grammars do not allow and, below min_tokens, the ids that end the output.

        If a grammar allows only ids that end the output, they stay.
        """
        masks = dict(masks)
        rows: list[int] = []
        ids: list[int] = []
        for j in batch.below_min_tokens:
            ending = [id for id in batch.rows[j].ending_ids if id < self.vocab_size]
            if j in masks:
                masks[j] = _without(masks[j], ending)
            elif len(ending) < self.vocab_size:
                rows += [j] * len(ending)
                ids += ending
        if ids:
            row_index, id_index = upload(np.array([rows, ids], np.int64), self._device)
            logits[row_index, id_index] = -torch.inf
        if masks:
            _apply_masks(logits, masks)


def _without(mask: Tensor, ids: list[int]) -> Tensor:
    """`mask` without `ids`, if that leaves any."""
    rest = mask.clone()
    rest[ids] = False
    return rest if bool(rest.any()) else mask


def _apply_masks(logits: Tensor, masks: dict[int, Tensor]) -> None:
    """Exclude the ids that masks[j] (bool [V], on the host) does not allow in row j, for all j."""
    if logits.device.type == "cpu":
        for j, mask in masks.items():
            logits[j].masked_fill_(~mask, -torch.inf)
        return
    rows = upload(np.array(list(masks), np.int64), logits.device)
    allowed = upload(torch.stack(list(masks.values())).numpy(), logits.device)
    logits.index_copy_(0, rows, logits.index_select(0, rows).masked_fill_(~allowed, -torch.inf))


def _row_logprobs(logits: Tensor, reported: ReportedRows) -> RowLogprobs:
    """The logprobs of the rows that report them."""
    logprobs = torch.log_softmax(logits.index_select(0, reported.rows), dim=-1)
    if not reported.most:
        return RowLogprobs(logprobs, None, None)
    # The count is fixed, since the order of ties depends on it.
    best = torch.topk(logprobs, min(MAX_TOP_LOGPROBS, logits.shape[1]), dim=-1)
    return RowLogprobs(logprobs, best.indices, best.values)


def _next_ids(logits: Tensor, draw: DrawParameters | None) -> Tensor:
    """The next id of every row: argmax where it is greedy, else the draw."""
    if draw is None:
        return logits.argmax(dim=-1).int()
    if draw.has_greedy:
        ids = logits.argmax(dim=-1).int()
    else:
        ids = torch.empty(len(logits), dtype=torch.int32, device=logits.device)
    if draw.rows is not None:
        logits = logits.index_select(0, draw.rows)
    # Subtracting the maximum first keeps tiny temperatures from overflowing.
    warped = logits.sub_(logits.amax(dim=-1, keepdim=True)).div_(draw.temperatures[:, None])
    probabilities = torch.softmax(warped, dim=-1)
    if draw.rows is None:
        draw_tokens(probabilities, draw, ids)
    else:
        drawn = torch.empty(len(logits), dtype=torch.int32, device=logits.device)
        draw_tokens(probabilities, draw, drawn)
        ids.index_copy_(0, draw.rows, drawn)
    return ids
