"""Shapes of /v1/completions: chunks of a stream and the whole answer, echo and log-likelihood evaluation included."""

from collections.abc import Sequence

from capstan_engine.messages import TokenLogprobs
from capstan_engine.server.answer import Json
from capstan_engine.server.call import Call
from capstan_engine.server.generation import Piece
from capstan_engine.server.logprobs import TokenNames, finite, prompt_logprobs
from capstan_engine.server.prompts import Prompt
from capstan_engine.server.requests import CompletionBody


class CompletionFormat:
    """Turns pieces into completion chunks or one answer. Choice i belongs to prompt i // n."""

    def __init__(self, body: CompletionBody, call: Call, tokens: TokenNames, prompts: Sequence[Prompt]) -> None:
        self._body = body
        self._call = call
        self._tokens = tokens
        self._prompts = prompts
        self._offsets: dict[int, int] = {}

    def events(self, piece: Piece) -> list[Json]:
        events: list[Json] = []
        opens = piece.index not in self._offsets
        choice = self._choice(piece, opens=opens)
        if opens or choice["text"] or (piece.token_ids and (piece.logprobs or self._body.return_token_ids)):
            events.append(self._event([choice]))
        if piece.finish_reason is not None:
            end = {"finish_reason": piece.finish_reason, "stop_reason": piece.stop_reason}
            events.append(self._event([{"index": piece.index, "text": "", "logprobs": None} | end]))
        return events

    def usage_event(self) -> Json:
        return self._event([])

    def body(self, choices: Sequence[Piece]) -> Json:
        return self._event([self._whole(piece) for piece in choices])

    def _whole(self, piece: Piece) -> Json:
        choice = self._choice(piece, opens=True)
        choice["finish_reason"], choice["stop_reason"] = piece.finish_reason, piece.stop_reason
        if piece.prompt_logprobs is not None and not self._body.echo:
            choice["prompt_logprobs"] = prompt_logprobs(piece.prompt_logprobs, self._tokens)
        return choice

    def _event(self, choices: list[Json]) -> Json:
        return {
            "id": self._call.id,
            "object": "text_completion",
            "created": self._call.created,
            "model": self._call.model,
            "choices": choices,
        }

    def _choice(self, piece: Piece, *, opens: bool) -> Json:
        """A choice without its end. The one that `opens` carries the echoed prompt."""
        prompt = self._prompts[piece.index // self._body.num_choices]
        echoes = opens and bool(self._body.echo)
        text = prompt.text + piece.text if echoes else piece.text
        choice: Json = {"index": piece.index, "text": text, "logprobs": None, "finish_reason": None}
        offset = self._offsets.setdefault(piece.index, 0)
        if self._body.logprobs is not None:
            echoed = (piece.prompt_logprobs or [], prompt.token_ids) if echoes else ([], [])
            positions: list[TokenLogprobs | None] = [*echoed[0], *(piece.logprobs or ())]
            ids = [*echoed[1], *piece.token_ids]
            choice["logprobs"] = self._logprobs(ids, positions, offset)
            offset += sum(len(self._tokens.text(token)) for token in ids)
        self._offsets[piece.index] = offset
        if self._body.return_token_ids:
            choice["token_ids"] = piece.token_ids
            if opens:
                choice["prompt_token_ids"] = prompt.token_ids
        return choice

    def _logprobs(self, ids: Sequence[int], positions: Sequence[TokenLogprobs | None], offset: int) -> Json:
        offsets = []
        for token in ids:
            offsets.append(offset)
            offset += len(self._tokens.text(token))
        return {
            "tokens": [self._tokens.name(token) for token in ids],
            "token_logprobs": [None if position is None else finite(position.logprobs[0]) for position in positions],
            "top_logprobs": [None if position is None else self._alternatives(position) for position in positions],
            "text_offset": offsets,
        }

    def _alternatives(self, position: TokenLogprobs) -> dict[str, float]:
        """Alternatives by name, the token itself always among them; of two with one name the likelier counts."""
        chosen = (position.ids[0], finite(position.logprobs[0]))
        alternatives = self._tokens.most_likely(position, self._body.logprobs or 0)
        named: dict[str, float] = {}
        for token, logprob in sorted({*alternatives, chosen}, key=lambda each: -each[1]):
            named.setdefault(self._tokens.name(token), logprob)
        return named
