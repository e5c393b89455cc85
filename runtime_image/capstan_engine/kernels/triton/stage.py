"""One buffer of pinned memory for each step, and one on the device that it is copied to.

Two on the host, in turn: while one is being copied, which waits for all that the device has to do first, the next step
is already put into the other. One on the device is enough, since copies and kernels follow each other there. Where a
tensor lies depends on nothing but the sizes of what was put before it, so a step of the same sizes finds the same
addresses again; a recorded graph lives on that.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from capstan_engine.kernels.triton.machine import DEVICE, INTERPRETED

_ALIGNMENT = 16
"""Triton compiles a kernel anew for a pointer of another alignment, so that must not depend on the batch."""
_FIRST_BYTES = 1 << 16


class DeviceStage:
    """Grows where a step has more to put than any before: then what was put already goes in a copy of its own.

    The next step of the same sizes fits, and every one after that finds the addresses of that one.
    """

    def __init__(self) -> None:
        self._used = self._total = self._side = 0
        self._allocate(_FIRST_BYTES)

    def put(self, array: NDArray[Any]) -> torch.Tensor:
        """At a multiple of 16 bytes."""
        array = np.ascontiguousarray(array)
        begin = -(-self._used // _ALIGNMENT) * _ALIGNMENT
        self._total += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        if begin + array.nbytes > self._device.nbytes:
            self._copy()
            self._allocate(2 * max(self._device.nbytes, array.nbytes))
            begin = 0
        if not self._used and not INTERPRETED:
            # Of the step before the last: it has long been copied, unless somebody launches many steps ahead.
            self._copied[self._side].synchronize()
        end = self._used = begin + array.nbytes
        self._host[self._side][begin:end].copy_(torch.from_numpy(array.reshape(-1).view(np.uint8)))
        return self._device[begin:end].view(torch.from_numpy(array).dtype).view(array.shape)

    def send(self) -> None:
        """All of it in one copy."""
        self._copy()
        if self._total > self._device.nbytes:
            self._allocate(2 * self._total)
        self._side ^= 1
        self._used = self._total = 0

    def _allocate(self, num_bytes: int) -> None:
        self._host = [torch.empty(num_bytes, dtype=torch.uint8, pin_memory=not INTERPRETED) for _ in range(2)]
        self._device = torch.empty(num_bytes, dtype=torch.uint8, device=DEVICE)
        self._copied = [] if INTERPRETED else [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._side = self._used = 0

    def _copy(self) -> None:
        self._device[: self._used].copy_(self._host[self._side][: self._used], non_blocking=True)
        if not INTERPRETED:
            self._copied[self._side].record()
