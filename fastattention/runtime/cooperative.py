"""A decoder's KV cache on a GPU and in host memory together: attention runs where the cache lies.

The paper's CPU-GPU cooperation (FastAttention, arXiv:2410.16663, section 4.3), with two additions. The CPU
and the GPU can share the keys of one layer: what the bus can carry in the time goes up, the CPU attends to
the rest, and log-sum-exps join the two exactly. And two halves of a batch can take turns, so that the GPU
works on one while the CPU attends for the other. Classical offloading, which sends the whole cache up for
each token, is one of the ways, and what the others are measured against. ``reference.offload`` says what each
moves and how long that takes.

A whole token is queued before the first layer is done: copies on streams of their own, the CPU's attention as
a call of a C function in the middle of a stream, on threads that Python knows nothing of.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cache_rows import storage_dtype
from ..validate import MAX_HEAD_DIM
from .device import Device
from .layers import Exchange, Holdings, HostLayer, Sizes, cpu_threads
from .rows import Rows
from .staging import Piece, Ring

if TYPE_CHECKING:
    from ..offload.plan import OffloadPlan

__all__ = ["WAYS", "CooperativeCache"]

#: Where a layer's cache lies, and who attends to it: on the GPU; in host memory, the CPU; likewise, CPU and
#: GPU each to a part; likewise, the GPU, to which all of it goes up.
WAYS = ("gpu", "host", "split", "upload")


class CooperativeCache:
    """Keys and values of a decoder's layers, some on a device, some in host memory, and attention to them.

    Parameters
    ----------
    placement : sequence of str
        One of `WAYS` for each layer, in order.
    batch, q_heads, kv_heads, head_dim : int
        B sequences of equal length, Hq, Hkv, D.
    dtype : dtype
        What the cache stores: float32, float16, bfloat16 or int8, as in `KVCache`.
    capacity : int
        Most tokens of a sequence. Memory for them is taken now, all of it.
    compute_dtype : dtype
        Of queries and outputs: float32 or `dtype`; with int8 also float16 or bfloat16.
    share : float, default 1.0
        Of a "split" layer's keys, those that the CPU attends to. 0 to 1.
    halves : int, default 1
        2: two halves of the batch take turns on GPU and CPU when tokens are decoded. Needs B of 2 or more,
        and layers "gpu" and "host" only.
    chunk : int, default 512
        Most tokens of a prompt in one step.
    slots, slot_tokens : int, default 2 and 4096
        Places on the device for caches on their way up, and the tokens (of each sequence) that each holds.
    threads : int, optional
        Of the CPU's attention; by default one less than `fastattention.num_threads`, where there are several:
        a core is left to who queues, and to the driver.
    device : Device
        From `open_device`.

    Attributes
    ----------
    parts : list of slice
        Of the batch: all of it, or two halves. `whole` is all of it in any case, for prompts.
    length : int
        Tokens that each sequence has.

    Raises
    ------
    TypeError, ValueError
        An argument does not fit.
    MemoryError
        There is no room; what was taken was given back.

    Notes
    -----
    One step is `step`, and in it `attend` for each layer in order (with two parts: for part 0, then for
    part 1). It counts once everything has happened without a fault; else the cache is as it was before.
    """

    def __init__(
        self,
        placement: Sequence[str],
        batch: int,
        q_heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        dtype: Any,
        capacity: int,
        compute_dtype: Any,
        share: float = 1.0,
        halves: int = 1,
        chunk: int = 512,
        slots: int = 2,
        slot_tokens: int = 4096,
        threads: int | None = None,
        device: Device,
    ) -> None:
        stored = storage_dtype(dtype)
        compute = storage_dtype(compute_dtype)
        numbers = {
            "batch": batch, "q_heads": q_heads, "kv_heads": kv_heads, "capacity": capacity, "chunk": chunk,
            "slots": slots, "slot_tokens": slot_tokens,
        }  # fmt: skip
        if not 1 <= head_dim <= MAX_HEAD_DIM:
            raise ValueError(f"head_dim: expected 1 to {MAX_HEAD_DIM}, got {head_dim!r}")
        _check(placement, numbers, stored, compute, share, halves, threads)
        self._sizes = Sizes(batch, q_heads, kv_heads, head_dim, stored, compute, capacity)
        self._row_bytes = self._sizes.row_bytes
        self._device = device
        self._share = share
        self._chunk = min(chunk, capacity)
        self._slot_tokens = min(slot_tokens, capacity)
        self.whole = slice(0, batch)
        self.parts = [self.whole] if halves == 1 else [slice(0, batch // 2), slice(batch // 2, batch)]
        self.length = 0
        self._count = 0  # tokens of the step that is under way
        self._next = 0  # how many times `attend` was called in it
        self._held = Holdings(device)
        self._streams = [self._held.stream() for _ in self.parts]
        self._current = self._streams[0]
        self._failed = np.zeros(1, np.int32)
        self._numbers: dict[str, float] = dict.fromkeys(
            ("steps", "seconds", "up_bytes", "down_bytes", "cpu_bytes", "cpu_seconds"), 0
        )
        self._layers: list[list[Rows] | HostLayer] = []
        self._exchanges: list[Exchange] = []
        self._ring: Ring | None = None
        self._chunks: list[Rows] = []
        self._closed = False
        try:
            with device.use(self._streams[0]):
                self._allocate(placement, slots, threads)
            device.wait()
        except BaseException:
            self.close()
            raise

    @classmethod
    def from_plan(cls, plan: OffloadPlan, device: Device, *, compute_dtype: Any = None) -> CooperativeCache:
        """Return the cache that a plan describes.

        Parameters
        ----------
        plan : OffloadPlan
            From `plan_offload`.
        device : Device
            The one it was made for, or one with as much memory.
        compute_dtype : dtype, optional
            Default: the plan's ``weight_dtype``.

        Raises
        ------
        ValueError
            The plan is for a machine with more memory than this one has left. Nothing was taken.
        MemoryError
            As the class.
        """
        model = plan.model
        _check_room(plan, device)
        return cls(
            plan.placement, plan.batch, model.heads, model.kv_heads, model.head_dim, dtype=plan.kv_dtype,
            capacity=plan.context, compute_dtype=compute_dtype or plan.weight_dtype, share=plan.share,
            halves=plan.halves, chunk=plan.chunk, slots=plan.slots or 2, slot_tokens=plan.slot_tokens or 4096,
            threads=plan.threads, device=device,
        )  # fmt: skip

    @property
    def capacity(self) -> int:
        """Most tokens of a sequence."""
        return self._sizes.capacity

    @property
    def chunk(self) -> int:
        """Most tokens of a prompt in one step."""
        return self._chunk

    def _allocate(self, placement: Sequence[str], slots: int, threads: int | None) -> None:
        sizes, device = self._sizes, self._device
        ways = set(placement)
        for way in placement:
            if way == "gpu":
                self._layers.append(
                    [sizes.rows(device, sizes.capacity, part.stop - part.start) for part in self.parts]
                )
            else:
                self._layers.append(HostLayer(self._held, sizes, way))
        if ways == {"gpu"}:
            return
        if threads is None:
            threads = cpu_threads()
        self._exchanges = [Exchange(device, self._held, sizes, rows) for rows in self.parts]
        for layer in self._layers:
            if isinstance(layer, HostLayer):
                layer.prepare(sizes, self.parts, self._exchanges, threads, self._failed)
        # A place holds one token more than a piece: the new one.
        self._ring = Ring(
            device, self._held.stream(), [sizes.rows(device, self._slot_tokens + 1) for _ in range(slots)]
        )
        self._chunks = [sizes.rows(device, self._chunk) for _ in range(2)]
        self._down = self._held.stream()
        self._written: list[Any] = [None, None]  # since when a chunk's rows are in host memory
        shape = sizes.batch, self._chunk, sizes.q_heads, sizes.head_dim
        self._part = device.xp.empty(shape, sizes.compute_dtype)
        self._sum = device.xp.empty(shape, np.float32)
        # Two, by turns: a merge may not write the log-sum-exps that it reads.
        self._sum_lse = device.xp.empty((2, sizes.batch, sizes.q_heads, self._chunk), np.float32)
        self._part_lse = device.xp.empty(self._sum_lse.shape[1:], np.float32)

    def close(self) -> None:
        """Give all memory back; the cache cannot be used any more."""
        if self._closed:
            return
        self._closed = True
        self._device.wait()
        self._held.close()
        self._layers, self._exchanges, self._chunks, self._ring = [], [], [], None
        self._part = self._sum = self._sum_lse = self._part_lse = None

    @contextmanager
    def stream(self, part: int = 0) -> Iterator[None]:
        """Let the device's array operations go to the stream of a part of the batch."""
        before, self._current = self._current, self._streams[part]
        try:
            with self._device.use(self._current):
                yield
        finally:
            self._current = before

    @contextmanager
    def step(self, count: int = 1) -> Iterator[None]:
        """Take tokens into every sequence: `attend` is called for each layer inside.

        Parameters
        ----------
        count : int, default 1
            Tokens of each sequence: 1, or up to `chunk` of a prompt.

        Raises
        ------
        ValueError
            There is no room for them; nothing has changed.
        MemoryError, RuntimeError
            The CPU's attention, or the device, failed. The cache is as it was before.
        """
        if self._closed or self._count:
            raise RuntimeError("step: the cache is closed" if self._closed else "step: one is under way")
        if not 1 <= count <= max(self._chunk, 1):
            raise ValueError(f"count: expected 1 to chunk, {self._chunk}, got {count}")
        if self.length + count > self._sizes.capacity:
            raise ValueError(
                f"count: {self.length} + {count} tokens are more than the capacity of {self._sizes.capacity}"
            )
        self._count, self._next, started = count, 0, time.perf_counter()
        try:
            if self._ring is not None:
                self._ring.start(self._pieces())
            yield
            expected = len(self._layers) * (len(self.parts) if count == 1 else 1)
            if self._next != expected:
                raise RuntimeError(f"step: attend was called {self._next} times, not {expected}")
            self._device.wait()
            self._collect()
            self.length += count
        except BaseException:
            self._abandon()
            raise
        finally:
            self._count = 0
        self._numbers["steps"] += 1
        self._numbers["seconds"] += time.perf_counter() - started

    def _collect(self) -> None:
        """Raise what the CPU's steps met, or count their time."""
        if self._count > 1:
            return
        for layer in self._layers:
            if isinstance(layer, HostLayer) and layer.way != "upload":
                for cpu_step in layer.steps:
                    cpu_step.check()
                    self._numbers["cpu_seconds"] += cpu_step.seconds

    def _abandon(self) -> None:
        """Let what is queued end, the CPU's part of it without work, and forget its rows."""
        self._failed[0] = 1
        try:
            self._device.wait()
        finally:
            self._failed[0] = 0
            self.truncate(self.length)

    def truncate(self, length: int) -> None:
        """Forget every token from position `length` on.

        Raises
        ------
        ValueError
            `length` is negative.
        """
        if length < 0:
            raise ValueError(f"length: expected at least 0, got {length}")
        self.length = min(self.length, length)
        for layer in self._layers:
            if not isinstance(layer, HostLayer):
                for rows in layer:
                    rows.length = min(rows.length, self.length)

    def _rising(self, way: str) -> int:
        """Return how many of the tokens held go up for a host layer in the step that is under way."""
        held = self.length
        if self._count > 1 or way == "upload":
            return held
        return 0 if way == "host" else min(held, round((1 - self._share) * held))

    def _pieces(self) -> list[Piece]:
        pieces = []
        for layer in self._layers:
            if isinstance(layer, HostLayer):
                last = self._rising(layer.way)
                pieces += [
                    Piece(layer.planes, first, min(first + self._slot_tokens, last))
                    for first in range(0, last, self._slot_tokens)
                ]
        return pieces

    def attend(self, layer: int, qkv: Any, out: Any, part: int = 0) -> None:
        """Queue a layer's attention on the current part's stream, with the new tokens' keys and values.

        Parameters
        ----------
        layer : int
            Layers come in order.
        qkv : array, shape (B', S, Hq + 2 Hkv, D)
            Of the compute dtype, on the device, without gaps: queries, keys, values. B' sequences of the
            part, S tokens of the step.
        out : array, shape (B', S, Hq, D)
            Likewise; filled.
        part : int, default 0
            Of `parts`; 0 for a prompt, which goes through whole.

        Raises
        ------
        RuntimeError
            Out of turn.
        ValueError
            A shape does not fit.
        """
        sizes, count = self._sizes, self._count
        turns = len(self.parts) if count == 1 else 1
        if not count or divmod(self._next, turns) != (layer, part):
            raise RuntimeError(f"attend: layer {layer}, part {part} is out of turn")
        rows = self.parts[part] if count == 1 else self.whole
        batch = rows.stop - rows.start
        for name, array, heads in (
            ("qkv", qkv, sizes.q_heads + 2 * sizes.kv_heads), ("out", out, sizes.q_heads)
        ):  # fmt: skip
            if array.shape != (batch, count, heads, sizes.head_dim) or array.dtype != sizes.compute_dtype:
                raise ValueError(
                    f"{name}: expected {sizes.compute_dtype} {(batch, count, heads, sizes.head_dim)}, got "
                    f"{array.dtype} {array.shape}"
                )
        self._next += 1
        where = self._layers[layer]
        if not isinstance(where, HostLayer):
            self._on_device(where, qkv, out, part)
        elif count > 1 or (self.length == 0 and where.way != "host"):
            self._prompt(layer, where, qkv, out)
        elif where.way == "upload":
            self._upload(where, qkv, out)
        else:
            self._cooperate(where, qkv, out, part)

    def _on_device(self, held: list[Rows], qkv: Any, out: Any, part: int) -> None:
        """The cache lies on the device: append and attend there."""
        device = self._device
        whole = [(held[part], slice(None))]
        own = whole if self._count == 1 else list(zip(held, self.parts, strict=True))
        for rows, which in own:
            q, k, v = self._sizes.split(qkv[which])
            device.append(rows, k, v)
            device.attend(rows, q, out[which].swapaxes(1, 2), None, causal=True)

    def _prompt(self, index: int, layer: HostLayer, qkv: Any, out: Any) -> None:
        """Attend on the device, to the chunk itself and to pieces as they come up; its rows go down."""
        device, stream, count = self._device, self._current, self._count
        assert self._ring is not None
        q, k, v = self._sizes.split(qkv)
        turn = index % 2
        chunk = self._chunks[turn]
        if self._written[turn] is not None:
            device.wait_event(stream, self._written[turn])
        chunk.length = 0
        device.append(chunk, k, v)
        device.wait_event(self._down, device.record(stream))
        for here, there in zip(layer.planes, chunk.planes, strict=True):
            target = here[:, :, self.length : self.length + count]
            device.copy(self._down, target, there[:, :, :count])
            self._numbers["down_bytes"] += target.nbytes
        self._written[turn] = device.record(self._down)

        result = out.swapaxes(1, 2)  # (B, Hq, S, D)
        joined, lse = result, self._sum_lse[1, :, :, :count]
        device.attend(chunk, q, joined, lse, causal=True)
        part, part_lse = self._part[:, :count].swapaxes(1, 2), self._part_lse[:, :, :count]
        total = self._sum[:, :count].swapaxes(1, 2)
        for turn, first in enumerate(range(0, self.length, self._slot_tokens)):
            tokens = min(self._slot_tokens, self.length - first)
            place = self._ring.take(stream, tokens)
            device.attend(place, q, part, part_lse, causal=False)
            self._ring.give_back(place, stream)
            last = first + tokens == self.length
            target, target_lse = (result, None)
            if not last:
                target, target_lse = total, self._sum_lse[turn % 2, :, :, :count]
            device.merge([joined, part], [lse, part_lse], target, target_lse)
            joined, lse = target, target_lse

    def _upload(self, layer: HostLayer, qkv: Any, out: Any) -> None:
        """Classical: the cache goes up, the device attends, the new row goes down."""
        device, stream = self._device, self._current
        assert self._ring is not None
        q, k, v = self._sizes.split(qkv)
        outs: list[Any] = []
        lses: list[Any] = []
        for first in range(0, self.length, self._slot_tokens):
            tokens = min(self._slot_tokens, self.length - first)
            place = self._ring.take(stream, tokens)
            whole = tokens == self.length
            if first + tokens == self.length:
                device.append(place, k, v)
                for here, there in zip(layer.planes, place.planes, strict=True):
                    target = here[:, :, self.length : self.length + 1]
                    device.copy(stream, target, there[:, :, tokens : tokens + 1])
                    self._numbers["down_bytes"] += target.nbytes
            if whole:
                device.attend(place, q, out.swapaxes(1, 2), None, causal=False)
            else:
                self._attend_part(place, q, outs, lses)
            self._ring.give_back(place, stream)
        if outs:
            device.merge(outs, lses, out.swapaxes(1, 2), None)

    def _attend_part(self, place: Rows, q: Any, outs: list[Any], lses: list[Any]) -> None:
        """Attend on the device to a piece, for `merge`."""
        outs.append(self._device.xp.empty(q.shape, q.dtype))
        lses.append(self._device.xp.empty(q.shape[:3], np.float32))
        self._device.attend(place, q, outs[-1], lses[-1], causal=False)

    def _cooperate(self, layer: HostLayer, qkv: Any, out: Any, part: int) -> None:
        """The CPU attends where the cache lies; of a "split" layer, the device to what came up."""
        device, stream, exchange = self._device, self._current, self._exchanges[part]
        rising = self._rising(layer.way)
        cpu_step = layer.steps[part]
        cpu_step.set_range(rising, self.length + 1)
        self._numbers["down_bytes"] += exchange.qkv.nbytes
        self._numbers["up_bytes"] += exchange.out.nbytes
        rows = (self.length + 1 - rising) * len(exchange.qkv)
        self._numbers["cpu_bytes"] += rows * self._row_bytes
        device.hand(exchange.qkv_there, qkv)
        if layer.way == "host":
            device.call(stream, cpu_step)
            device.hand(out, exchange.out_there)
            return
        self._numbers["up_bytes"] += exchange.lse.nbytes
        device.wait_event(exchange.stream, device.record(stream))
        device.call(exchange.stream, cpu_step)
        attended = device.record(exchange.stream)
        assert self._ring is not None
        q, _, _ = self._sizes.split(qkv)
        outs, lses = [exchange.out_there.swapaxes(1, 2)], [exchange.lse_there]
        for first in range(0, rising, self._slot_tokens):
            place = self._ring.take(stream, min(self._slot_tokens, rising - first))
            self._attend_part(place, q, outs, lses)
            self._ring.give_back(place, stream)
        device.wait_event(stream, attended)
        device.merge(outs, lses, out.swapaxes(1, 2), None)

    def fill_random(self, length: int, seed: int = 0) -> None:
        """Fill every sequence up to `length` with random keys and values, the same for the same seed.

        For measuring without a prompt: normally distributed rows, whatever the placement.

        Raises
        ------
        ValueError
            `length` is not 0 to the capacity.
        """
        sizes, device = self._sizes, self._device
        if not 0 <= length <= sizes.capacity:
            raise ValueError(f"length: expected 0 to {sizes.capacity}, got {length}")
        self.truncate(0)
        staging = self._chunks[0] if self._chunks else None
        stream = self._streams[0]
        with device.use(stream):
            for index, layer in enumerate(self._layers):
                # Pieces of a size that no option changes, so that the numbers are the same.
                for first in range(0, length, _RANDOM_TOKENS):
                    count = min(_RANDOM_TOKENS, length - first)
                    shape = 2, sizes.batch, sizes.kv_heads, count, sizes.head_dim
                    k, v = device.normal((seed, index, first), shape)
                    if not isinstance(layer, HostLayer):
                        for rows, which in zip(layer, self.parts, strict=True):
                            device.append(rows, k[which], v[which])
                        continue
                    assert staging is not None
                    for at in range(0, count, self._chunk):
                        size = min(self._chunk, count - at)
                        staging.length = 0
                        device.append(staging, k[:, :, at : at + size], v[:, :, at : at + size])
                        for here, there in zip(layer.planes, staging.planes, strict=True):
                            start = first + at
                            device.copy(stream, here[:, :, start : start + size], there[:, :, :size])
        device.wait()
        self.length = length

    def statistics(self) -> dict[str, float]:
        """Return what steps have done so far.

        Returns
        -------
        dict
            "steps", and their "seconds"; "up_bytes" and "down_bytes" over the bus; "cpu_bytes" that the CPU's
            attention read, and its "cpu_seconds". Filling and abandoned steps are not counted in seconds.
        """
        numbers = dict(self._numbers)
        if self._ring is not None:
            numbers["up_bytes"] += self._ring.bytes
        return numbers


_RANDOM_TOKENS = 4096


def _check_room(plan: OffloadPlan, device: Device) -> None:
    """Refuse a plan for another machine: before anything is taken, the weights being there already."""
    free, total = device.memory()
    needed = sum(size for name, size in plan.gpu_use.items() if name != "weights")
    made_for = f"plan: it was made for {plan.hardware.name} ({plan.hardware.gpu_memory / 1e9:.1f} GB)"
    if needed > free:
        raise ValueError(
            f"{made_for}, and takes {needed / 1e9:.2f} GB beside the weights; {device.name} has "
            f"{free / 1e9:.2f} of {total / 1e9:.1f} GB free"
        )
    caches, left = plan.host_use.get("caches", 0), device.host_memory()
    if caches > left:
        raise ValueError(
            f"{made_for}, and takes {caches / 1e9:.2f} GB of host memory; {left / 1e9:.2f} GB are available"
        )


def _check(
    placement: Sequence[str], numbers: dict[str, int], dtype: Any, compute: Any, share: float, halves: int,
    threads: int | None,
) -> None:  # fmt: skip
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
    if not placement or any(way not in WAYS for way in placement):
        raise ValueError(f"placement: expected one of {WAYS} for each layer, got {placement!r}")
    if numbers["q_heads"] % numbers["kv_heads"]:
        raise ValueError(
            f"q_heads: expected a multiple of kv_heads, {numbers['kv_heads']}, got {numbers['q_heads']}"
        )
    if compute == np.int8 or (compute not in (np.float32, dtype) and dtype != np.int8):
        raise TypeError(f"compute_dtype: expected float32 or {dtype} (the cache's), got {compute}")
    if not 0 <= share <= 1:
        raise ValueError(f"share: expected 0 to 1, got {share}")
    if halves not in (1, 2):
        raise ValueError(f"halves: expected 1 or 2, got {halves}")
    if halves == 2 and (numbers["batch"] < 2 or not set(placement) <= {"gpu", "host"}):
        raise ValueError(
            "halves: 2 needs a batch of at least 2, and layers 'gpu' or 'host' only; got a batch of "
            f"{numbers['batch']} and {sorted(set(placement))}"
        )
    if threads is not None and threads < 1:
        raise ValueError(f"threads: expected at least 1, got {threads}")
