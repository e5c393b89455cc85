"""KV blocks: who holds them, which are free, and which free ones still hold a prefix worth keeping.

Knows block numbers and opaque keys, neither tokens nor tensors. Surprising idea: a cached block is not a third kind of
block. It is a free block that remembers its key; it counts as free, is handed out last, and the longest unused goes
first. Everything is O(1) per block.
"""

from collections import OrderedDict
from collections.abc import Iterable

from capstan_engine.block_table import BlockTable


class BlockPool:
    """`num_blocks` blocks with reference counts and a table from key to the block that holds it."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._holders = [0] * num_blocks
        self._key_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._blank = list(range(num_blocks - 1, -1, -1))
        # An OrderedDict because taking the oldest of a plain dict again and again is quadratic.
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Blocks that `take` can hand out, cached ones included."""
        return len(self._blank) + len(self._cached)

    @property
    def num_held(self) -> int:
        return self.num_blocks - self.num_free

    @property
    def num_cached(self) -> int:
        """Free blocks that still hold a reusable prefix."""
        return len(self._cached)

    def is_free(self, block: int) -> bool:
        return not self._holders[block]

    def find(self, key: bytes) -> int | None:
        """The block published under `key`, free or held."""
        return self._block_of.get(key)

    def take(self) -> int:
        """A free block for one holder; its former content is forgotten. The caller has looked at `num_free`."""
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            self._forget_key(block)
        self._holders[block] = 1
        return block

    def share(self, blocks: Iterable[int]) -> None:
        """Add one holder to each of these published blocks."""
        for block in blocks:
            if not self._holders[block]:
                del self._cached[block]
            self._holders[block] += 1

    def publish(self, block: int, key: bytes) -> None:
        """Let others find this held, fully computed block. The first block under a key keeps it."""
        if self._block_of.setdefault(key, block) == block:
            self._key_of[block] = key

    def forget(self, blocks: Iterable[int]) -> None:
        """Withdraw blocks whose content is not to be trusted; their holders keep them."""
        for block in blocks:
            self._forget_key(block)

    def give_back(self, block_table: BlockTable) -> None:
        """Drop one holder from each block of a request.

        The end of the table counts as unused longest: it is the part that the fewest other requests can share.
        """
        for block in reversed(block_table):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if self._key_of[block] is None:
                self._blank.append(block)
            else:
                self._cached[block] = None

    def _forget_key(self, block: int) -> None:
        key = self._key_of[block]
        if key is not None:
            del self._block_of[key]
            self._key_of[block] = None
