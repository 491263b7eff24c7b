"""The sampling kernels on CUDA, in Triton: the mirror of cpu_sampling.py. One program per row, and nothing is sorted.

A set of kept elements that is a prefix of the descending order (equal elements by id) is a pair (key, ties): the
elements whose bits are above `key`, and the first `ties` of those whose bits are `key`. The key is found by searching
the floats' bits, which order positive floats like their values: each pass over the row sums the elements above three
keys, which quarters the range. Sums of equal elements are products, so that no pass depends on another program.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 4096, 16
"""Elements of a row that `draw` reads at a time, and its warps: few programs run, so each must keep loads in flight."""

UNROLL = tl.constexpr(2)
"""Blocks that `_sums` reads at a time."""

TABLE_BLOCK = 1024
"""Entries of a table row that `adjust` and `count` read at a time."""

MASS, COUNT, TYPICAL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""What `_crossing` sums: weights above a weight, elements above a weight, or weights below a distance."""

LARGEST = tl.constexpr(0x7F7FFFFF)
"""The bits of the largest finite float32."""


@triton.jit
def _sums(weights, distances, size, key_1, key_2, key_3, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """The fp64 sums over the elements with a key of at least `key_1`, `key_2`, `key_3`; keys are above 0."""
    sum_1 = tl.zeros((BLOCK,), tl.float64)
    sum_2 = tl.zeros((BLOCK,), tl.float64)
    sum_3 = tl.zeros((BLOCK,), tl.float64)
    offsets = tl.arange(0, UNROLL)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    for start in range(0, size, UNROLL * BLOCK):
        inside = start + offsets < size
        weight = tl.load(weights + start + offsets, mask=inside, other=0.0)
        keys = weight.to(tl.int32, bitcast=True)
        value = weight.to(tl.float64)
        if KIND == COUNT:
            value = tl.full((UNROLL, BLOCK), 1.0, tl.float64)
        if KIND == TYPICAL:
            keys = LARGEST - tl.load(distances + start + offsets, mask=inside, other=0.0).to(tl.int32, bitcast=True)
        sum_1 += tl.sum(tl.where(keys >= key_1, value, 0.0), 0)
        sum_2 += tl.sum(tl.where(keys >= key_2, value, 0.0), 0)
        sum_3 += tl.sum(tl.where(keys >= key_3, value, 0.0), 0)
    return tl.sum(sum_1, 0), tl.sum(sum_2, 0), tl.sum(sum_3, 0)


@triton.jit
def _crossing(weights, distances, size, low, high, target, KIND: tl.constexpr, STRICT: tl.constexpr,
              BLOCK: tl.constexpr):  # fmt: skip
    """(key, sum above it): the largest key in [low, high] down to which the sum passes `target`; `low`, if none does.

    "Pass" is > where STRICT, else >=.
    """
    above = tl.full((), 0.0, tl.float64)
    while low < high:
        step = (high - low + 3) // 4
        key_1 = low + step
        key_2 = key_1 + tl.minimum(step, high - key_1)
        key_3 = key_2 + tl.minimum(step, high - key_2)
        sum_1, sum_2, sum_3 = _sums(weights, distances, size, key_1, key_2, key_3, KIND, BLOCK)
        if STRICT:
            passes_1, passes_2, passes_3 = sum_1 > target, sum_2 > target, sum_3 > target
        else:
            passes_1, passes_2, passes_3 = sum_1 >= target, sum_2 >= target, sum_3 >= target
        low = tl.where(passes_3, key_3, tl.where(passes_2, key_2, tl.where(passes_1, key_1, low)))
        below = tl.where(passes_2, key_3 - 1, tl.where(passes_1, key_2 - 1, key_1 - 1))
        above = tl.where(passes_3, above, tl.where(passes_2, sum_3, tl.where(passes_1, sum_2, sum_1)))
        high = tl.where(passes_3, high, below)
    return low, above


@triton.jit
def _total(weights, size, key, ties, BLOCK: tl.constexpr):
    """The sum of the prefix (key, ties)."""
    above, _, _ = _sums(weights, weights, size, key + 1, key + 1, key + 1, MASS, BLOCK)
    return above + ties * key.to(tl.float32, bitcast=True).to(tl.float64)


@triton.jit
def _highest(weights, size, BLOCK: tl.constexpr):
    """The bits of the largest weight."""
    highest = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        bits = tl.load(weights + at, mask=at < size, other=0.0).to(tl.int32, bitcast=True)
        highest = tl.maximum(highest, tl.minimum(bits, LARGEST))
    return tl.max(highest, 0)


@triton.jit
def _truncate(weights, size, highest, top_k, top_p, min_p, BLOCK: tl.constexpr):
    """The prefix that top_k, then top_p of the rest, then min_p keep. The most likely element stays."""
    key = highest * 0
    ties = tl.full((), 0.0, tl.float64)
    left = tl.full((), 1.0, tl.float64)
    if top_k > 0:
        key, above = _crossing(weights, weights, size, key, highest, top_k.to(tl.float64), COUNT, False, BLOCK)
        ties = tl.where(key > 0, top_k.to(tl.float64) - above, 0.0)
        left = _total(weights, size, key, ties, BLOCK)
    if top_p < 1.0:
        target = top_p * left
        cut, above = _crossing(weights, weights, size, key, highest, target, MASS, False, BLOCK)
        count = tl.maximum(tl.ceil((target - above) / cut.to(tl.float32, bitcast=True).to(tl.float64)), 1.0)
        ties = tl.where(cut == key, tl.minimum(count, ties), count)
        key = cut
    if min_p > 0.0:
        least = min_p * highest.to(tl.float32, bitcast=True).to(tl.float64)
        rounded = least.to(tl.float32)
        lowest = rounded.to(tl.int32, bitcast=True) + (rounded.to(tl.float64) < least).to(tl.int32)
        ties = tl.where(lowest > key, 0.0, ties)
        key = tl.maximum(key, lowest - 1)
    return key, ties


@triton.jit
def _keep_prefix(weights, size, key, ties, BLOCK: tl.constexpr):
    """Zero the weights outside the prefix (key, ties)."""
    seen = key * 0
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        weight = tl.load(weights + at, mask=at < size, other=0.0)
        bits = weight.to(tl.int32, bitcast=True)
        is_tie = (bits == key).to(tl.int32)
        rank = seen + tl.cumsum(is_tie, 0)
        kept = (bits > key) | ((is_tie > 0) & (rank <= ties))
        tl.store(weights + at, tl.where(kept, weight, 0.0), mask=at < size)
        seen += tl.sum(is_tie, 0)
    tl.debug_barrier()


@triton.jit
def _keep_typical(weights, distances, size, mass, BLOCK: tl.constexpr):
    """Zero the weights that are far from the mean information, as `_keep_typical` of cpu_sampling.py does."""
    total = _total(weights, size, size * 0, 0.0, BLOCK)
    terms = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        share = tl.load(weights + at, mask=at < size, other=0.0).to(tl.float64) / total
        terms += tl.where(share > 0.0, share * tl.log(tl.where(share > 0.0, share, 1.0)), 0.0)
    entropy = -tl.sum(terms, 0)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        share = tl.load(weights + at, mask=at < size, other=0.0).to(tl.float64) / total
        distance = tl.abs(-tl.log(tl.where(share > 0.0, share, 1.0)) - entropy)
        tl.store(distances + at, distance.to(tl.float32), mask=at < size)
    tl.debug_barrier()
    cut, _ = _crossing(weights, distances, size, size * 0, size * 0 + LARGEST, mass * total, TYPICAL, False, BLOCK)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        keys = LARGEST - tl.load(distances + at, mask=at < size, other=0.0).to(tl.int32, bitcast=True)
        tl.store(weights + at, 0.0, mask=(at < size) & (keys < cut))
    tl.debug_barrier()


@triton.jit
def _tie(weights, size, key, count, BLOCK: tl.constexpr):
    """The id of the last of the first `count` elements whose bits are `key`."""
    found, seen = key * 0, key * 0
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        bits = tl.load(weights + at, mask=at < size, other=0.0).to(tl.int32, bitcast=True)
        is_tie = ((bits == key) & (at < size)).to(tl.int32)
        rank = seen + tl.cumsum(is_tie, 0)
        found = tl.maximum(found, tl.max(tl.where((is_tie > 0) & (rank <= count), at, 0), 0))
        seen += tl.sum(is_tie, 0)
    return found


@triton.jit
def _running_sum(weights, size, target, BLOCK: tl.constexpr):
    """(sum, start, sum before it): the first block in which the running sum by id passes `target`."""
    running = tl.full((), 0.0, tl.float64)
    before = tl.full((), 0.0, tl.float64)
    crossed = size * 0
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        reached = running + tl.sum(tl.load(weights + at, mask=at < size, other=0.0).to(tl.float64), 0)
        crosses = (running <= target) & (reached > target)
        crossed = tl.where(crosses, start, crossed)
        before = tl.where(crosses, running, before)
        running = reached
    return running, crossed, before


@triton.jit
def _less_than(total, draw):
    """`draw * total`, but less than `total`, which rounding could make it."""
    return tl.minimum(draw * total, (total.to(tl.int64, bitcast=True) - 1).to(tl.float64, bitcast=True))


@triton.jit
def _best_first(weights, size, highest, key, ties, draw, BLOCK: tl.constexpr):
    """The id of the prefix (key, ties) at which the sum, in descending order, passes the draw's share."""
    target = _less_than(_total(weights, size, key, ties, BLOCK), draw)
    cut, above = _crossing(weights, weights, size, key, highest, target, MASS, True, BLOCK)
    count = tl.floor((target - above) / cut.to(tl.float32, bitcast=True).to(tl.float64)) + 1.0
    count = tl.where(cut == key, tl.minimum(count, ties), count)
    return _tie(weights, size, cut, tl.maximum(count, 1.0), BLOCK)


@triton.jit
def _first_past(weights, size, draw, BLOCK: tl.constexpr):
    """The id at which the running sum, by id, passes the draw's share."""
    total, _, _ = _running_sum(weights, size, draw * 0.0, BLOCK)
    target = _less_than(total, draw)
    _, start, before = _running_sum(weights, size, target, BLOCK)
    at = start + tl.arange(0, BLOCK)
    weight = tl.load(weights + at, mask=at < size, other=0.0).to(tl.float64)
    passes = (before + tl.cumsum(weight, 0) > target) & (weight > 0.0)
    first = tl.min(tl.where(passes, at, size), 0)
    last = tl.max(tl.where(weight > 0.0, at, 0), 0)
    return tl.minimum(first, last)


@triton.jit
def draw(probabilities, distances, top_k, cuts, draws, out, size, HAS_TYPICAL: tl.constexpr, BLOCK: tl.constexpr):
    """out[row] = the id that the row's draw gives; program (row)."""
    row = tl.program_id(0)
    number = tl.load(draws + row)
    if number < 0.0:
        return
    weights = probabilities + row.to(tl.int64) * size
    k = tl.load(top_k + row)
    top_p = tl.load(cuts + row * 3)
    min_p = tl.load(cuts + row * 3 + 1)
    typical_p = tl.load(cuts + row * 3 + 2)
    truncated = (k > 0) | (top_p < 1.0) | (min_p > 0.0)
    highest = _highest(weights, size, BLOCK)
    key, ties = _truncate(weights, size, highest, k, top_p, min_p, BLOCK)
    if HAS_TYPICAL:  # noqa: SIM102  # compiled only where it is needed
        if typical_p < 1.0:
            _keep_prefix(weights, size, key, ties, BLOCK)
            _keep_typical(weights, distances + row.to(tl.int64) * size, size, typical_p, BLOCK)
            key = key * 0
            ties = ties * 0.0
    if truncated:
        tl.store(out + row, _best_first(weights, size, highest, key, ties, number, BLOCK))
    else:
        tl.store(out + row, _first_past(weights, size, number, BLOCK))


@triton.jit
def adjust(logits, rows, places, penalties, ids, counts, biases, sizes, vocab_size, width, BLOCK: tl.constexpr):
    """Penalise and bias the entries of a table row in a row of logits; program (entry of `rows`)."""
    i = tl.program_id(0)
    line = logits + tl.load(rows + i).to(tl.int64) * vocab_size
    place = tl.load(places + i)
    first = place.to(tl.int64) * width
    repetition = tl.load(penalties + i * 3)
    presence = tl.load(penalties + i * 3 + 1)
    frequency = tl.load(penalties + i * 3 + 2)
    size = tl.load(sizes + place)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < size
        id = tl.load(ids + first + at, mask=inside, other=0)
        count = tl.load(counts + first + at, mask=inside, other=0.0)
        bias = tl.load(biases + first + at, mask=inside, other=0.0)
        value = tl.load(line + id, mask=inside, other=0.0)
        lowered = tl.where(value > 0.0, value / repetition, value * repetition)
        lowered -= frequency * count + tl.where(count > 0.0, presence, 0.0)
        tl.store(line + id, tl.where(count >= 0.0, lowered, value) + bias, mask=inside)


@triton.jit
def count(sampled, rows, places, ids, counts, biases, sizes, width, BLOCK: tl.constexpr):
    """Count a row's sampled id in its table row; program (entry of `rows`)."""
    i = tl.program_id(0)
    token = tl.load(sampled + tl.load(rows + i))
    place = tl.load(places + i)
    first = place.to(tl.int64) * width
    size = tl.load(sizes + place)
    tl.debug_barrier()  # every warp has the size before one of them changes it
    entry = size
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        id = tl.load(ids + first + at, mask=at < size, other=-1)
        entry = tl.minimum(entry, tl.min(tl.where(id == token, at, size), 0))
    is_new = entry == size
    before = tl.load(counts + first + entry, mask=entry < size, other=0.0)
    tl.store(counts + first + entry, tl.maximum(before, 0.0) + 1.0)
    tl.store(ids + first + entry, token)
    tl.store(biases + first + entry, 0.0, mask=is_new)
    tl.store(sizes + place, size + is_new.to(tl.int32))


def draw_rows(
    probabilities: Tensor, distances: Tensor | None, top_k: Tensor, cuts: Tensor, draws: Tensor, out: Tensor
) -> None:
    """As `draw_rows` of cpu_sampling.py. `distances` [N, V] fp32 is scratch memory, needed if a row has typical_p."""
    scratch = probabilities if distances is None else distances
    arguments = (probabilities, scratch, top_k, cuts, draws, out, probabilities.shape[1])
    draw[(len(probabilities),)](*arguments, distances is not None, BLOCK, num_warps=WARPS)


def adjust_rows(
    logits: Tensor, rows: Tensor, places: Tensor, penalties: Tensor, table: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    """As `adjust_rows` of cpu_sampling.py."""
    sizes = (logits.shape[1], table[0].shape[1])
    adjust[(len(rows),)](logits, rows, places, penalties, *table, *sizes, TABLE_BLOCK)


def count_rows(sampled: Tensor, rows: Tensor, places: Tensor, table: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """As `count_rows` of cpu_sampling.py."""
    count[(len(rows),)](sampled, rows, places, *table, table[0].shape[1], TABLE_BLOCK)
