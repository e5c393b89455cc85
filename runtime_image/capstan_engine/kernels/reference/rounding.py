"""Few distinct sizes: oneDNN generates code for every new matrix shape.

That takes about 2 ms, as much as a whole decode step of a small model, and contexts grow by a token a step. So sizes
are rounded up to `m · 2^k` with a short mantissa; what is added is masked or ignored.
"""


def round_up(size: int, steps: int = 4) -> int:
    """The smallest `m · 2^k >= size` with `steps <= m < 2 · steps`; sizes up to `2 · steps` stay as they are."""
    shift = max(0, (size - 1).bit_length() - steps.bit_length())
    return -(-size >> shift) << shift
