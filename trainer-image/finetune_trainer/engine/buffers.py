"""The buffer pool: memory by name, reused from one micro-batch to the next.

On a CPU fresh pages cost more than the arithmetic done in them, and a peak that repeats can be planned. A buffer contains
what was last written into it, always finite numbers: nothing may rely on more.
"""

import math
from collections.abc import Hashable

import torch


class BufferPool:
    """Named buffers on one device; each grows to the largest size requested so far."""

    def __init__(self, dtype: torch.dtype, where: torch.device) -> None:
        self.dtype, self.where = dtype, where
        self._owners: dict[Hashable, object] = {}
        self._buffers: dict[Hashable, torch.Tensor] = {}

    def take(self, name: Hashable, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A contiguous tensor of this shape (of the pool's dtype unless given), valid until the name is taken again."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            self._buffers.pop(name, None)  # free the old one first
            self._owners.pop(name, None)
            buffer = self._buffers[name] = torch.zeros(size, dtype=dtype or self.dtype, device=self.where)
        return buffer[:size].view(shape)

    def claim(self, name: Hashable, owner: object) -> bool:
        """Records who filled a buffer; returns whether that was somebody else, or nobody, before."""
        changed = self._owners.get(name) is not owner
        self._owners[name] = owner
        return changed

    def release(self, name: Hashable) -> None:
        """Forgets who filled a buffer: its content is out of date."""
        self._owners.pop(name, None)

    def clear(self) -> None:
        """Frees all buffers."""
        self._owners.clear()
        self._buffers.clear()

    @property
    def bytes(self) -> int:
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers.values())
