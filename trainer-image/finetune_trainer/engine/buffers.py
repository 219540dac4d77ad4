"""Memory that is used again: buffers by name, kept from one micro-batch to the next.

Fresh pages cost a CPU more than the arithmetic done in them, and a peak that repeats can be planned. A buffer holds what was
last written into it, finite numbers at any time: nothing may rely on more.
"""

import math
from collections.abc import Hashable

import torch


class BufferPool:
    """Named buffers on one device; each grows to the largest size that was asked for."""

    def __init__(self, dtype: torch.dtype, where: torch.device) -> None:
        self.dtype, self.where = dtype, where
        self._owners: dict[Hashable, object] = {}
        self._held: dict[Hashable, torch.Tensor] = {}

    def take(self, name: Hashable, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A contiguous tensor of this shape (and the arena's dtype), which lives until the name is taken again."""
        size = math.prod(shape)
        found = self._held.get(name)
        if found is None or found.numel() < size:
            self._held.pop(name, None)  # the old one goes before the new one comes
            self._owners.pop(name, None)
            found = self._held[name] = torch.zeros(size, dtype=dtype or self.dtype, device=self.where)
        return found[:size].view(shape)

    def claim(self, name: Hashable, owner: object) -> bool:
        """Makes what is in a buffer an owner's; whether it was another's, or nobody's, before."""
        changed = self._owners.get(name) is not owner
        self._owners[name] = owner
        return changed

    def release(self, name: Hashable) -> None:
        """What is in a buffer is nobody's any more."""
        self._owners.pop(name, None)

    @property
    def bytes(self) -> int:
        return sum(buffer.numel() * buffer.element_size() for buffer in self._held.values())
