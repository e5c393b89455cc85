"""The CPU bench's peers: llama.cpp in an environment of its own, and transformers in this one.

Every contestant has one method, `run(prompts, num_tokens) -> Run`, and decodes greedily.
"""

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import transformers
from environments import Environment

LLAMA = Environment(
    "llama",
    requirements=("llama-cpp-python==0.3.36", "gguf==0.19.0"),
    imports=("gguf", "llama_cpp"),
    variables={"CMAKE_ARGS": "-DGGML_NATIVE=ON"},
    takes="about 7 minutes of compiling",
)

Clock = Callable[[], float]
"""`time.perf_counter` or `time.process_time`."""


class Run(NamedTuple):
    """Seconds of one run, and its tokens."""

    prefill_s: float
    """Until every prompt has its first token."""
    decode_s: float
    """From there to the last token of all."""
    tokens: list[list[int]]


class Transformers:
    """`generate` with scaled_dot_product_attention."""

    def __init__(self, model_dir: Path, dtype: str, clock: Clock) -> None:
        self._clock = clock
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        ).eval()
        self._model.generation_config = transformers.GenerationConfig(pad_token_id=0)

    def run(self, prompts: Sequence[list[int]], num_tokens: int) -> Run:
        stamps: list[float] = []

        def stamp(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            stamps.append(self._clock())
            return torch.zeros(ids.shape[0], dtype=torch.bool)

        ids = torch.tensor(prompts)
        started = self._clock()
        with torch.inference_mode():
            out = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=num_tokens,
                stopping_criteria=transformers.StoppingCriteriaList([stamp]),
            )
        return Run(stamps[0] - started, stamps[-1] - stamps[0], out[:, ids.shape[1] :].tolist())


class Llama:
    """A llama.cpp process that waits for work without using a processor."""

    def __init__(self, gguf: Path, *, threads: int, sequences: int, tokens: int, clock: Clock) -> None:
        arguments = ["serve", str(gguf), str(threads), str(sequences), str(tokens), clock.__name__]
        self._process = subprocess.Popen(
            [LLAMA.python, Path(__file__).with_name("peers_llama.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def run(self, prompts: Sequence[list[int]], num_tokens: int) -> Run:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "num_tokens": num_tokens}) + "\n")
        self._process.stdin.flush()
        return Run(**self._answer())

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"llama.cpp ended with exit code {self._process.wait()}")
        return json.loads(line)


def as_gguf(model_dir: Path, kind: str) -> Path:
    """The checkpoint as GGUF of a kind (BF16, Q8_0, Q4_0), written once."""
    target = model_dir / f"{kind}.gguf"
    if not target.exists():
        script = Path(__file__).with_name("peers_llama.py")
        subprocess.run(
            [LLAMA.python, script, "convert", model_dir, target, kind],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    return target
