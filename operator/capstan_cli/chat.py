"""`capstan chat`: a conversation in the terminal, with TTFT and TPOT of every turn.

On a terminal it prompts; with input from a pipe it answers line by line, text to stdout and figures to stderr.
"""

import asyncio
import sys
from typing import TextIO

import aiohttp

from capstan_cli import endpoint
from capstan_cli.endpoint import Answer
from capstan_cli.errors import CliError

Message = dict[str, str]
HELP = "/reset forgets the conversation, /quit (or Ctrl-D) leaves, Ctrl-C stops an answer"


def run(base: str, model: str | None, max_tokens: int, temperature: float, system: str | None) -> None:
    """Talk until /quit or the end of input. Raises `Unreachable` when no server answers at the start."""
    name = asyncio.run(_model(base, model))
    interactive = sys.stdin.isatty()
    opening: list[Message] = [{"role": "system", "content": system}] if system else []
    history = list(opening)
    if interactive:
        import readline  # noqa: F401 - gives input() line editing and a history

        print(f"{name} at {base}. {HELP}.")
    while (line := _read(sys.stdin, interactive)) is not None:
        match line.strip():
            case "":
                continue
            case "/quit" | "/exit":
                return
            case "/reset":
                history = list(opening)
                print("The conversation starts anew.", file=sys.stderr)
                continue
            case "/help":
                print(HELP, file=sys.stderr)
                continue
            case text:
                history.append({"role": "user", "content": text})
        body = {
            "model": name,
            "messages": history,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        answer = Answer()
        try:
            figures = asyncio.run(_turn(base, body, answer))
        except KeyboardInterrupt:
            figures = "stopped"
        except CliError as error:
            # The turn failed, the conversation has not: the question may be asked again.
            history.pop()
            print(f"\ncapstan: {error}", file=sys.stderr)
            continue
        print(flush=True)
        print(f"({figures})", file=sys.stderr)
        history.append({"role": "assistant", "content": "".join(answer.text)})


async def _turn(base: str, body: dict[str, object], answer: Answer) -> str:
    clock = asyncio.get_running_loop().time
    sent = clock()
    try:
        async with endpoint.session(timeout_s=600) as client:
            async for text in endpoint.stream(client, f"{base}/v1/chat/completions", body, {}, answer):
                print(text, end="", flush=True)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise CliError(f"the connection broke: {error or type(error).__name__}") from None
    if answer.status != 200:
        raise CliError(f"the server answered {answer.status}: {answer.error}")
    if answer.error:
        raise CliError(f"the answer was cut short: {answer.error}")
    if answer.first_token_at is None or answer.last_token_at is None:
        return "no text"
    num_tokens = (answer.usage or {}).get("completion_tokens", answer.content_events)
    ttft_ms = 1000 * (answer.first_token_at - sent)
    figures = f"TTFT {ttft_ms:.0f} ms"
    if num_tokens > 1:
        figures += f", TPOT {1000 * (answer.last_token_at - answer.first_token_at) / (num_tokens - 1):.1f} ms"
    return f"{figures}, {num_tokens} tokens, {answer.finish_reason or 'no finish reason'}"


async def _model(base: str, model: str | None) -> str:
    async with endpoint.session(timeout_s=30) as client:
        name, _ = await endpoint.served_model(client, base, model)
        return name


def _read(stdin: TextIO, interactive: bool) -> str | None:
    """The next line, or None at the end of input."""
    if not interactive:
        return stdin.readline() or None
    try:
        return input("\n> ")
    except EOFError:
        print()
        return None
    except KeyboardInterrupt:
        print(f"\n{HELP}")
        return ""
