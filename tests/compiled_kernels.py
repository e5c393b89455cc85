"""What tests of compiled kernels share: that there are any, each level of them in turn, and numbers in bfloat16."""

from typing import Final

import pytest
import torch

from capstan_engine.kernels.native.library import library

BF16: Final = torch.bfloat16
EACH_LEVEL: Final = [
    pytest.mark.skipif(library() is None, reason="nothing can be compiled here"),
    pytest.mark.usefixtures("at_each_level"),
]
"""For `pytestmark`: every level of instructions that this processor has."""

torch.set_num_threads(1)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(BF16)
