"""A request's blocks of the KV cache, in the order of its tokens: the scheduler fills it, and kernels read it in place.

An array and not a list, because a step reads the tables of all its requests: NumPy takes one over at once and C++ by
its address, where a list is unpacked number by number.
"""

from array import array
from collections.abc import Iterable
from typing import TypeAlias

BlockTable: TypeAlias = "array[int]"


def block_table(blocks: Iterable[int] = ()) -> BlockTable:
    """A table of 64-bit numbers."""
    return array("q", blocks)
