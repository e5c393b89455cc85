"""Which replica gets a request: the one that knows most of its prompt, unless that one is too busy.

Knows no HTTP, no clock and no replica table: candidates and `now` are arguments, the choice and its reason are a value.
Replicas keep the KV blocks of prompts that they have computed; a conversation that returns to its replica skips most
of its prefill. Affinity alone would pile work up, so a replica is eligible only while its load stays under a bound.

The surprising idea: ties are broken by rendezvous hashing of the prompt's first block, so that several gateways that
share no state still send equal prompts to the same replica.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from typing import Final

BLOCK_BYTES: Final = 256
"""Granularity of prefix matching: about 64 tokens of text, or exactly 64 token ids."""
MAX_BLOCKS: Final = 256
"""Prompts are compared over their first 64 KiB."""
BYTES_PER_TOKEN: Final = 4
TOKENS_PER_BLOCK: Final = BLOCK_BYTES // BYTES_PER_TOKEN

TOKENS_PER_REQUEST: Final = 128
"""What an open request weighs beside its prompt: its share of every decode step, in prefill tokens."""
LOAD_FACTOR: Final = 1.25
"""A replica may carry this multiple of the mean load. KubeAI's default for bounded loads (CHWBL, 125 %)."""
LOAD_SLACK: Final = 4 * TOKENS_PER_REQUEST
"""Tokens above the least loaded replica that are always allowed: with little traffic the mean means little."""


class Reason(StrEnum):
    """Why a replica was chosen."""

    ONLY = "only"
    PREFIX = "prefix"
    PREFIX_OVERLOADED = "prefix_overloaded"
    """Another replica knows more of the prompt, and is over the bound."""
    LEAST_LOADED = "least_loaded"


@dataclass(frozen=True)
class Candidate:
    """A ready replica, as one request sees it."""

    id: str
    num_requests: int
    prefill_tokens: int
    """Estimated prompt tokens that it has yet to compute."""
    matched_blocks: int = 0
    """Leading blocks of this request's prompt that it has seen."""
    aside_until: float = 0.0
    """After a failed connection others are tried first until this moment."""

    @property
    def load(self) -> int:
        """Outstanding work in prefill tokens."""
        return self.prefill_tokens + TOKENS_PER_REQUEST * self.num_requests


@dataclass(frozen=True)
class Choice:
    """A replica's id and why it was taken."""

    id: str
    reason: Reason


def load_bound(loads: Sequence[int]) -> float:
    """The load above which a replica is not eligible. The least loaded one is always under it.

    After consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, arXiv:1608.01350), with an absolute
    slack added.
    """
    return max(LOAD_FACTOR * sum(loads) / len(loads), min(loads) + LOAD_SLACK)


def choose(candidates: Sequence[Candidate], tie_key: bytes, now: float) -> Choice | None:
    """The eligible candidate with the longest known prefix, then the least load, then the highest rendezvous hash.

    Candidates put aside count only when there is no other. None without candidates.
    """
    present = [c for c in candidates if c.aside_until <= now] or list(candidates)
    if not present:
        return None
    bound = load_bound([c.load for c in present])
    eligible = [c for c in present if c.load <= bound]
    best = max(eligible, key=lambda c: (c.matched_blocks, -c.load, _rendezvous(tie_key, c.id)))
    return Choice(best.id, _reason(best, present))


def _reason(best: Candidate, present: Sequence[Candidate]) -> Reason:
    if len(present) == 1:
        return Reason.ONLY
    if best.matched_blocks < max(c.matched_blocks for c in present):
        return Reason.PREFIX_OVERLOADED
    return Reason.PREFIX if best.matched_blocks else Reason.LEAST_LOADED


def _rendezvous(key: bytes, replica_id: str) -> bytes:
    return blake2b(replica_id.encode(), key=key[:64], digest_size=8).digest()


def prefix_keys(prompt: bytes, salt: str = "") -> tuple[bytes, ...]:
    """One key per full block of `prompt`, each covering all blocks before it: equal keys mean equal prefixes.

    Keys differ between salts (the model's name), and a prompt shorter than one block has none.
    """
    return tuple(_chained_digests(prompt, salt))


def _chained_digests(prompt: bytes, salt: str) -> Iterator[bytes]:
    digest = blake2b(salt.encode(), digest_size=16).digest()
    for index in range(min(len(prompt) // BLOCK_BYTES, MAX_BLOCKS)):
        block = prompt[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
        digest = blake2b(digest + block, digest_size=16).digest()
        yield digest


class PrefixIndex:
    """The prompt blocks that one replica has seen lately: the gateway's guess at its prefix cache.

    Bounded, least recently used first out; the default stands for a million tokens.
    """

    def __init__(self, capacity: int = 16384) -> None:
        self._capacity = capacity
        self._keys: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    def match(self, keys: Sequence[bytes]) -> int:
        """Number of leading `keys` that are known."""
        for count, key in enumerate(keys):
            if key not in self._keys:
                return count
        return len(keys)

    def remember(self, keys: Sequence[bytes]) -> None:
        """Note that the replica computes these blocks.

        Later blocks are useless without earlier ones, so the first block is made the most recent.
        """
        for key in reversed(keys):
            self._keys[key] = None
            self._keys.move_to_end(key)
        while len(self._keys) > self._capacity:
            self._keys.popitem(last=False)
