"""Log probabilities keep their values and their order on the way to JSON."""

import math

from serving import SLO_CLASSES

from capstan_engine.messages import TokenLogprobs
from capstan_engine.server.call import Call
from capstan_engine.server.completions import CompletionFormat
from capstan_engine.server.generation import Piece
from capstan_engine.server.logprobs import TokenNames, prompt_logprobs
from capstan_engine.server.prompts import Prompt
from capstan_engine.server.requests import CompletionBody
from capstan_engine.text import Tokenizer

CALL = Call("cmpl-1", "tiny", 0, SLO_CLASSES[0], arrival=0.0, waited_s=0.0, deadline=None)


def top(tokenizer: Tokenizer, position: TokenLogprobs, num: int) -> dict[str, float]:
    body = CompletionBody.model_validate({"prompt": "x", "logprobs": num})
    form = CompletionFormat(body, CALL, TokenNames(tokenizer, as_ids=False), [Prompt("x", [1])])
    piece = Piece(0, token_ids=[position.ids[0]], logprobs=[position], finish_reason="length")
    found: dict[str, float] = form.body([piece])["choices"][0]["logprobs"]["top_logprobs"][0]
    return found


def test_the_token_itself_is_always_among_the_alternatives(tokenizer: Tokenizer) -> None:
    position = TokenLogprobs(ids=(300, 301, 302), logprobs=(-5.0, -0.5, -1.0), rank=9)
    names = [tokenizer.token_text(token) for token in (301, 302, 300)]
    assert list(top(tokenizer, position, 2).items()) == list(zip(names, (-0.5, -1.0, -5.0), strict=True))


def test_of_two_tokens_with_one_name_the_likelier_counts(tokenizer: Tokenizer) -> None:
    """A token that is not the most likely one must not look as if it were, only because both are half characters."""
    halves = [token for token in range(len(tokenizer)) if tokenizer.token_text(token) == "\ufffd"][:2]
    position = TokenLogprobs(ids=(halves[0], halves[1]), logprobs=(-3.0, -0.25), rank=2)
    assert top(tokenizer, position, 1) == {"\ufffd": -0.25}


def test_impossible_tokens_are_a_number_in_json(tokenizer: Tokenizer) -> None:
    assert top(tokenizer, TokenLogprobs((300,), (-math.inf,), 1), 1) == {tokenizer.token_text(300): -9999.0}


def test_prompt_logprobs_have_ranks_with_and_without_the_token_itself(tokenizer: Tokenizer) -> None:
    names = TokenNames(tokenizer, as_ids=False)
    beyond = TokenLogprobs(ids=(300, 301, 302), logprobs=(-5.0, -0.5, -1.0), rank=7)
    second = TokenLogprobs(ids=(300, 301, 302), logprobs=(-0.7, -0.5, -1.0), rank=2)
    found = prompt_logprobs([None, beyond, second], names)
    assert found[0] is None
    ranks = [{token: entry["rank"] for token, entry in (position or {}).items()} for position in found[1:]]
    assert ranks == [{"300": 7, "301": 1, "302": 2}, {"300": 2, "301": 1, "302": 3}]
