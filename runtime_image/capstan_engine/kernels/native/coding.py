"""bfloat16 weights in 12 bits each, exactly: what coded.cpp describes, made of a weight as it is in a checkpoint."""

from typing import Final, NamedTuple

import torch

from capstan_engine.kernels.native.library import library

_BLOCK: Final = 64
_CHUNK: Final = 1024
_NO_CODE: Final = 255
_NUM_CODES: Final = 16
_MOST_RARE: Final = 1 / 1024
"""Of all weights: each rare one is 48 bits more, and a product of its own."""


class Coded(NamedTuple):
    """A weight `[N, K]`, its blocks padded with zeros; the names are those of a product's tensors."""

    weights: torch.Tensor
    """uint8 `[N/64, K/2, 192]`."""
    scales: torch.Tensor
    """int16 `[32]`: the sixteen exponents twice, as they stand in a bfloat16."""
    starts: torch.Tensor
    """int64 `[N/64 · K/1024 + 1]`: where the rare weights of each chunk begin."""
    rare: torch.Tensor
    """int16 `[M, 3]`: input, output and weight."""


def is_worthwhile() -> bool:
    """Whether this processor decodes weights faster than it could read the bytes that are saved."""
    return hasattr(library(), "capstan_encode")


def code(weight: torch.Tensor) -> Coded | None:
    """A contiguous bfloat16 `[N, K]`, K even; None when one in a thousand of its weights or more would be rare, and
    where it is not worthwhile."""
    functions, (num_outputs, num_inputs) = library(), weight.shape
    if functions is None or not is_worthwhile():
        return None
    counts = torch.zeros(256, dtype=torch.int64)
    functions.capstan_count_exponents(weight.data_ptr(), weight.numel(), counts.data_ptr())
    # Zero has the first code: it is what stands for rare weights, and for those beyond the last output.
    frequent = [0, *(1 + counts[1:].topk(_NUM_CODES - 1).indices).tolist()]
    if weight.numel() - int(counts[frequent].sum()) >= weight.numel() * _MOST_RARE:
        return None
    codes = torch.full((256,), _NO_CODE, dtype=torch.uint8)
    codes[frequent] = torch.arange(_NUM_CODES, dtype=torch.uint8)
    num_blocks = -(-num_outputs // _BLOCK)
    starts = torch.empty(num_blocks * -(-num_inputs // _CHUNK) + 1, dtype=torch.int64)
    arguments = weight.data_ptr(), num_outputs, num_inputs, codes.data_ptr(), starts.data_ptr()
    functions.capstan_find_rare(*arguments)
    coded = Coded(
        weights=torch.empty(num_blocks, num_inputs // 2, 3 * _BLOCK, dtype=torch.uint8),
        scales=(torch.tensor(frequent * 2) << 7).to(torch.int16),
        starts=starts,
        rare=torch.empty(int(starts[-1]), 3, dtype=torch.int16),
    )
    functions.capstan_encode(*arguments, coded.weights.data_ptr(), coded.rare.data_ptr())
    return coded
