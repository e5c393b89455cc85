"""The model card: what a shipped model is, how good it is, and how to make it again.

This module knows words; every figure comes from the run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from models.dataset import Dataset
from models.evaluation import Quality
from models.network import Llama
from models.training import Recipe

LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class Run:
    """One training run as the card tells it; `seconds` counts the steps only, `teacher` is empty without one."""

    name: str
    command: str
    recipe: Recipe
    num_steps: int
    seconds: float
    teacher: str
    qualities: tuple[Quality, ...]


def card(run: Run, model: Llama, data: Dataset) -> str:
    """Return the model card in Markdown, with the front matter that model hubs read."""
    num_parameters = sum(weight.numel() for weight in model.parameters())
    return f"""---
license: {LICENCE.lower()}
language: en
library_name: transformers
pipeline_tag: text-generation
---

# {run.name}

A Llama-architecture language model of {num_parameters / 1e6:.1f} million parameters, trained from scratch on the
documentation that Debian packages ship. It exists so that Capstan's demo, tests and benchmarks run a real model on any
machine. It writes technical English and knows the tone of an answer; it does not know the facts. Do not rely on what
it says.

{_shape(model)}

## Held-out quality

1 % of the documents, chosen by the hash of their titles, was never trained on.

{_quality(run)}

## Training

{_training(run, data)}

## Data

The text is fetched from Debian by the training script and is not part of this repository. Pages are stripped to prose
and short listings; their sections, and the entries of the two dictionaries, also appear as questions and answers.

{_sources(data)}

The weights are released under {LICENCE}. The sources keep their own licences.
"""


def _shape(model: Llama) -> str:
    shape = model.shape
    return _table(
        ["hidden", "layers", "query heads", "KV heads", "head width", "feed-forward", "vocabulary", "trained context"],
        [
            [
                shape.hidden,
                shape.layers,
                shape.query_heads,
                shape.kv_heads,
                shape.head_dim,
                shape.feed_forward,
                shape.vocab,
                "1024 tokens",
            ]
        ],
    )


def _quality(run: Run) -> str:
    head = ["held-out text", "tokens", "perplexity", "bits per byte"]
    rows = [
        [quality.name, f"{quality.num_tokens:,}", f"{quality.perplexity:.2f}", f"{quality.bits_per_byte:.3f}"]
        for quality in run.qualities
    ]
    if run.teacher:
        head.append(f"most likely token equals that of {run.teacher}")
        for row, quality in zip(rows, run.qualities, strict=True):
            row.append(f"{quality.agreement:.1%}")
    return _table(head, rows)


def _training(run: Run, data: Dataset) -> str:
    recipe = run.recipe
    num_tokens = run.num_steps * recipe.batch_tokens
    epochs = num_tokens / len(data.train)
    lines = [
        f"Command: `{run.command}`",
        f"Steps: {run.num_steps:,} of {recipe.batch_tokens:,} tokens",
        f"Tokens: {num_tokens:,}, which is {epochs:.2f} of an epoch of {len(data.train):,}",
        f"Time: {run.seconds / 60:.0f} minutes on one CPU thread ({num_tokens / run.seconds:,.0f} tokens/s)",
        f"Optimizers: Muon for matrices (rate {recipe.matrix_rate}), AdamW for the rest (rate {recipe.vector_rate})",
        f"Schedule: {recipe.warmup_steps} warm-up steps, stable, linear to zero in the last {recipe.decay_share:.0%}",
        f"Rows of 256, then 512, then 1024 tokens; bfloat16 autocast; seed {recipe.seed}",
    ]
    if run.teacher:
        lines.append(f"In the decay it learned the distribution of {run.teacher} instead of the text")
    return "\n".join(f"- {line}" for line in lines)


def _sources(data: Dataset) -> str:
    return _table(
        ["package", "version", "licence", "documents", "million characters"],
        [
            [source.name, source.version, source.licence, f"{source.num_documents:,}", f"{source.num_chars / 1e6:.1f}"]
            for source in data.sources
        ],
    )


def _table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    lines: list[Sequence[object]] = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
