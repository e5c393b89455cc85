"""How the context of a single query is cut into pieces that many programs read at once (split-KV attention).

Pure numbers, so that a planner without a GPU knows what the parts take. The surprising idea: the cut depends on the
context's own length and on nothing else. Cutting for an even load would be a little faster for few requests, but then
the same request would be summed in another order in another batch, and its tokens could change with its neighbours.
"""

from typing import Final

MOST_PIECES: Final = 64
"""Of one context: what the combining kernel takes in one go."""
_SHORTEST_PIECE: Final = 256
"""Keys: 128 programs for one request of 4K keys and 8 KV heads, which is an H200's number of processors."""
_STEP: Final = 128
"""Longer pieces are multiples of the largest tile."""


def piece_length(num_keys: int) -> int:
    """Keys of one piece, so that there are at most `MOST_PIECES`."""
    even = -(-num_keys // MOST_PIECES)
    return max(_SHORTEST_PIECE, -(-even // _STEP) * _STEP)


def most_pieces(max_context: int, window: int | None = None) -> int:
    """Pieces of any context of `max_context` keys at most."""
    num_keys = max_context if window is None else min(window, max_context)
    return min(MOST_PIECES, -(-num_keys // _SHORTEST_PIECE))
