"""The byte-level BPE tokenizer of the shipped models and the format of their conversations.

This module knows token ids and the turn format; it does not know where text comes from. The chat template below and
`encode` describe one format twice, once for servers and once for training; a test keeps them equal.
"""

from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from models.corpus import Sample

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = {"user": "<|user|>", "assistant": "<|assistant|>", "system": "<|system|>"}
SPECIAL_TOKENS = (BEGIN, END, PAD, *ROLES.values())
VOCAB_SIZE = 4096

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- set role = 'system' if message['role'] == 'developer' else message['role'] -%}
{%- if role not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('message role must be system, developer, user or assistant, not ' + role) -}}
{%- endif -%}
{{- '<|' + role + '|>' + message['content'] | trim + eos_token -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Train the tokenizer on `texts`; it puts `<|begin|>` before a plain text, as Llama tokenizers do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, token_id(tokenizer, BEGIN))]
    )
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of a special token."""
    number = tokenizer.token_to_id(token)
    assert number is not None, f"{token} is one of the tokens the tokenizer was trained with"
    return number


def text_of(sample: Sample) -> str:
    """Return a sample's own words, without the turn format."""
    return sample.prose or "\n".join(message["content"] for message in sample.messages)


def encode(tokenizer: Tokenizer, samples: Iterable[Sample], batch_size: int = 2000) -> Iterator[list[int]]:
    """Yield each sample's token ids: begin, the text or the turns, end."""
    begin, end = token_id(tokenizer, BEGIN), token_id(tokenizer, END)
    roles = {role: token_id(tokenizer, token) for role, token in ROLES.items()}
    for batch in _batches(samples, batch_size):
        texts = [text for sample in batch for text in _parts(sample)]
        encoded = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        for sample in batch:
            ids = [begin]
            if sample.prose:
                ids += [*next(encoded).ids, end]
            for message in sample.messages:
                ids += [roles[message["role"]], *next(encoded).ids, end]
            yield ids


def _parts(sample: Sample) -> list[str]:
    return [sample.prose] if sample.prose else [message["content"].strip() for message in sample.messages]


def _batches(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    batch: list[Sample] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
