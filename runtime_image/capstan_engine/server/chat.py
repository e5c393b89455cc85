"""Shapes of /v1/chat/completions: chunks of a stream and the whole answer."""

from collections.abc import Sequence
from typing import Any

from capstan_engine.messages import TokenLogprobs
from capstan_engine.server.answer import Json
from capstan_engine.server.call import Call
from capstan_engine.server.generation import Piece
from capstan_engine.server.logprobs import TokenNames, finite, prompt_logprobs
from capstan_engine.server.requests import ChatBody


class ChatFormat:
    """Turns pieces into chat chunks or one chat answer."""

    def __init__(self, body: ChatBody, call: Call, tokens: TokenNames, prompt_token_ids: list[int]) -> None:
        self._call = call
        self._tokens = tokens
        self._num_logprobs = body.num_logprobs
        self._prompt_token_ids = prompt_token_ids if body.return_token_ids else None
        self._opened: set[int] = set()

    def events(self, piece: Piece) -> list[Json]:
        events: list[Json] = []
        if piece.index not in self._opened:
            opening = self._chunk(piece.index, {"role": "assistant", "content": ""})
            if self._prompt_token_ids is not None and not self._opened:
                opening["prompt_token_ids"] = self._prompt_token_ids
            self._opened.add(piece.index)
            events.append(opening)
        if piece.text or (piece.token_ids and (piece.logprobs or self._prompt_token_ids is not None)):
            events.append(self._chunk(piece.index, {"content": piece.text}, **self._details(piece)))
        if piece.finish_reason is not None:
            end = {"finish_reason": piece.finish_reason, "stop_reason": piece.stop_reason}
            events.append(self._chunk(piece.index, {}, **end))
        return events

    def usage_event(self) -> Json:
        return self._head("chat.completion.chunk") | {"choices": []}

    def body(self, choices: Sequence[Piece]) -> Json:
        answer = self._head("chat.completion")
        answer["choices"] = [
            {
                "index": piece.index,
                "message": {"role": "assistant", "content": piece.text, "refusal": None},
                "logprobs": None,
                "finish_reason": piece.finish_reason,
                "stop_reason": piece.stop_reason,
            }
            | self._details(piece)
            for piece in choices
        ]
        if self._prompt_token_ids is not None:
            answer["prompt_token_ids"] = self._prompt_token_ids
        if choices[0].prompt_logprobs is not None:
            answer["prompt_logprobs"] = prompt_logprobs(choices[0].prompt_logprobs, self._tokens)
        return answer

    def _head(self, kind: str) -> Json:
        return {"id": self._call.id, "object": kind, "created": self._call.created, "model": self._call.model}

    def _chunk(self, index: int, delta: Json, **details: Any) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None} | details
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def _details(self, piece: Piece) -> Json:
        """What a choice says of its tokens, as far as the request asked."""
        details: Json = {}
        if piece.logprobs is not None:
            details["logprobs"] = {"content": [self._entry(position) for position in piece.logprobs], "refusal": None}
        if self._prompt_token_ids is not None:
            details["token_ids"] = piece.token_ids
        return details

    def _entry(self, position: TokenLogprobs) -> Json:
        first = self._token(position.ids[0], finite(position.logprobs[0]))
        alternatives = self._tokens.most_likely(position, self._num_logprobs or 0)
        return first | {"top_logprobs": [self._token(token, logprob) for token, logprob in alternatives]}

    def _token(self, token_id: int, logprob: float) -> Json:
        return {"token": self._tokens.name(token_id), "logprob": logprob, "bytes": self._tokens.bytes(token_id)}
