"""How the arrays of a step reach the device: all together, in one copy that the host does not wait for.

The surprising idea: a tensor on the device can be had before anything lies in it. So whoever plans a part of a step
puts its arrays down and goes on with tensors, and knows nothing of the others; then the stage is sent once.
"""

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray


class Stage(Protocol):
    """Between the host and one device. Steps use it one after the other."""

    def put(self, array: NDArray[Any]) -> torch.Tensor:
        """A tensor on the device that holds `array` after the next `send`. It is valid until that after the next."""

    def send(self) -> None:
        """Start the copy of all that was put since the last one, before whatever the device is given next."""


class HostStage:
    """Where host and device are the same: what is put is there."""

    def put(self, array: NDArray[Any]) -> torch.Tensor:
        """The same memory."""
        return torch.from_numpy(np.ascontiguousarray(array))

    def send(self) -> None:
        """Nothing to do."""
