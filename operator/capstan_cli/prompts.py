"""Readable prompts of an exact token count, for any tokenizer, by asking the server to count.

Sentences and single words are counted once each through `/tokenize`; prompts are then put together from counted parts,
which is exact for every tokenizer that splits at spaces (all byte-level BPE models) and close for the others. What the
server counts in the end stands beside what was wanted in every report.

The surprising idea: each prompt opens with six words drawn for it alone, so that no two share a cached prefix unless
the caller asks for one (`shared_prefix_tokens`).
"""

import asyncio
import random
from dataclasses import dataclass

import aiohttp

from capstan_cli import endpoint
from capstan_cli.errors import Unreachable


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_THINGS = _words(
    "river garden machine letter window mountain teacher harbour engine village forest question market bridge "
    "story kitchen signal island library winter orchard planet sailor castle blanket mirror station pencil valley "
    "lantern doctor meadow clock ribbon tunnel farmer basket journal copper thunder"
)
_KINDS = _words(
    "old quiet bright narrow early distant gentle heavy simple hollow patient golden careful broken silent warm "
    "curious empty famous northern"
)
_DEEDS = _words(
    "follows answers repairs remembers crosses describes watches measures carries explains visits opens finds "
    "covers builds leaves changes holds reaches paints"
)
_WHEN = _words("today often slowly again together yesterday alone nearby before after")
# Cheap in every English vocabulary: at least one of them is a single token, which closes any gap exactly.
_SMALL = _words("and the of in to it is at on for")
_NUM_SENTENCES = 120
_HEAD_WORDS = 6


@dataclass(frozen=True)
class Composer:
    """Counted parts. `overhead_tokens` is what the chat template adds around a message."""

    sentences: tuple[tuple[str, int], ...]
    words: tuple[tuple[str, int], ...]
    overhead_tokens: int = 0

    def prompt(self, num_tokens: int, seed: str, shared_prefix_tokens: int = 0) -> str:
        """Text that makes a prompt of `num_tokens`, template included; at least one word."""
        rng = random.Random(seed)
        left = max(num_tokens - self.overhead_tokens, 1)
        parts: list[str] = []
        if shared_prefix_tokens:
            left = self._fill(parts, left, min(shared_prefix_tokens, left), random.Random("shared prefix"))
        for word, cost in rng.sample(self.words, min(_HEAD_WORDS, len(self.words))):
            if cost <= left:
                parts.append(word)
                left -= cost
        self._fill(parts, left, left, rng)
        return " ".join(parts) or self.words[0][0]

    def _fill(self, parts: list[str], left: int, budget: int, rng: random.Random) -> int:
        longest = max(cost for _, cost in self.sentences)
        while budget >= longest:
            sentence, cost = rng.choice(self.sentences)
            parts.append(sentence)
            budget, left = budget - cost, left - cost
        while affordable := [part for part in self.words if part[1] <= budget]:
            word, cost = rng.choice(affordable)
            parts.append(word)
            budget, left = budget - cost, left - cost
        return left


async def calibrate(client: aiohttp.ClientSession, base: str, model: str, *, chat: bool) -> Composer:
    """Count the parts with the server's `/tokenize`; raises `Unreachable` when it has none."""
    gate = asyncio.Semaphore(16)

    async def count(body: dict[str, object]) -> int:
        async with gate:
            answer = await endpoint.post(client, f"{base}/tokenize", {"model": model, **body})
        number = answer.get("count")
        if not isinstance(number, int):
            raise Unreachable(f"{base}/tokenize did not answer with a count; Capstan's and vLLM's do")
        return number

    async def plain(text: str) -> int:
        return await count({"prompt": text, "add_special_tokens": False})

    lead = "The"
    alone = await plain(lead)

    async def counted(part: str) -> tuple[str, int]:
        return part, max(await plain(f"{lead} {part}") - alone, 1)

    sentences = await asyncio.gather(*(counted(s) for s in _sentences()))
    words = await asyncio.gather(*(counted(w) for w in (*_THINGS, *_KINDS, *_SMALL)))
    if chat:
        framed = await count({"messages": [{"role": "user", "content": lead}], "add_generation_prompt": True})
    else:
        framed = await count({"prompt": lead, "add_special_tokens": True})
    return Composer(tuple(sentences), tuple(words), max(framed - alone, 0))


def _sentences() -> list[str]:
    rng = random.Random(0)

    def thing() -> str:
        return f"{rng.choice(_KINDS)} {rng.choice(_THINGS)}"

    return [
        f"The {thing()} {rng.choice(_DEEDS)} a {thing()} near the {rng.choice(_THINGS)} {rng.choice(_WHEN)}."
        for _ in range(_NUM_SENTENCES)
    ]
