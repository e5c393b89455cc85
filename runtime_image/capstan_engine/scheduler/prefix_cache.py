"""Prefix caching: finds the blocks that already hold the start of a request, and publishes those it has computed.

Knows no eviction: that is the block pool's order of reuse. Surprising idea: a block is named by the SHA-256 of
(name of the block before it, its tokens), so one name stands for a whole prefix, a lookup is one dictionary access per
block, and no tree is needed. The chain begins with the request's cache salt: other salts never share. A cryptographic
hash because a collision would show one tenant another's context.

Paged blocks: Kwon et al., 2023, arXiv 2309.06180. Naming a block by a chained hash: vLLM's automatic prefix caching.
"""

import hashlib
import struct

from capstan_engine.scheduler.block_pool import BlockPool
from capstan_engine.scheduler.request import Request


class PrefixCache:
    """The prefix cache over one pool. Blocks become findable when `publish` is called, not before."""

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self._pool = pool
        self._block_size = block_size
        self._pack = struct.Struct(f"{block_size}q").pack

    def match(self, request: Request) -> list[int]:
        """Published blocks that hold the longest known start of the request, without its last token.

        The last token is always left to compute: its logits give the next one. Takes no block.
        """
        blocks: list[int] = []
        for index in range((len(request.token_ids) - 1) // self._block_size):
            block = self._pool.find(self._key(request, index))
            if block is None:
                break
            blocks.append(block)
        return blocks

    def publish(self, request: Request) -> None:
        """Make the request's newly completed blocks findable."""
        num_full = request.num_computed // self._block_size
        for index in range(request.num_published, num_full):
            self._pool.publish(request.block_table[index], self._key(request, index))
        request.num_published = num_full

    def _key(self, request: Request, index: int) -> bytes:
        """Key of the request's full block `index`. Keys stay valid for life because known tokens never change."""
        keys = request.block_keys
        while len(keys) <= index:
            parent = keys[-1] if keys else hashlib.sha256(request.cache_salt.encode()).digest()
            start = len(keys) * self._block_size
            tokens = request.token_ids[start : start + self._block_size]
            keys.append(hashlib.sha256(parent + self._pack(*tokens)).digest())
        return keys[index]
