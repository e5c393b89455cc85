"""Token streams on disk: the training stream, cut into shuffled windows, and the held-out streams.

This module knows where a step's tokens come from; it does not know what is done with them. A batch is a pure function
of the seed and the step, so a resumed run sees exactly what an uninterrupted one would have seen.
"""

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from models.corpus import Sample, Source, documents, is_held_out, samples
from models.tokenizer import encode, text_of, train_tokenizer

WINDOW_TOKENS = 1024

# The tokenizer learns from every third sample: more text no longer changes its merges noticeably.
_TOKENIZER_STRIDE = 3


@dataclass(frozen=True)
class HeldOut:
    """A stream that is never trained on: token ids `[N]`, and how many bytes of text they stand for."""

    name: str
    tokens: Tensor
    num_bytes: int


@dataclass(frozen=True)
class Dataset:
    """The tokenizer, the training stream `[N]` of token ids, the held-out streams and the account of the sources."""

    tokenizer: Tokenizer
    train: Tensor
    held_out: tuple[HeldOut, ...]
    sources: tuple[Source, ...]

    @property
    def num_windows(self) -> int:
        """How many whole windows, each with the token after it, the training stream holds."""
        return (len(self.train) - 1) // WINDOW_TOKENS

    def batch(self, step: int, num_windows: int, sequence_length: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, each `[num_windows * WINDOW_TOKENS / sequence_length, sequence_length]` int64."""
        first = step * num_windows
        chosen = torch.stack([self._window(number, seed) for number in range(first, first + num_windows)])
        return chosen[:, :-1].reshape(-1, sequence_length), chosen[:, 1:].reshape(-1, sequence_length)

    def _window(self, number: int, seed: int) -> Tensor:
        epoch, position = divmod(number, self.num_windows)
        start = int(_order(self.num_windows, seed * 1000 + epoch)[position]) * WINDOW_TOKENS
        return self.train[start : start + WINDOW_TOKENS + 1].long()


@lru_cache(maxsize=2)
def _order(num_windows: int, seed: int) -> Tensor:
    return torch.randperm(num_windows, generator=torch.Generator().manual_seed(seed))


def prepare(directory: Path) -> Dataset:
    """Return the dataset kept in `directory`, building it from Debian's documentation first when it is not there."""
    if not (directory / "dataset.json").exists():
        chosen, sources = documents(directory)
        train = list(samples(document for document in chosen if not is_held_out(document)))
        held_out = list(samples(document for document in chosen if is_held_out(document)))
        _write(directory, train, held_out, sources)
    return _read(directory)


def prepare_text(directory: Path, texts: list[Path]) -> Dataset:
    """Return a dataset of plain text files, one sample each; what is held out is the same text."""
    found = [Sample(prose=path.read_text(encoding="utf-8")) for path in texts]
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory, found, found, [])
    data = _read(directory)
    if data.num_windows == 0:
        raise ValueError(f"--text: the files hold {len(data.train)} tokens; more than {WINDOW_TOKENS} are needed")
    return data


def _write(directory: Path, train: list[Sample], held_out: list[Sample], sources: list[Source]) -> None:
    tokenizer = train_tokenizer(text_of(sample) for sample in train[::_TOKENIZER_STRIDE])
    tokenizer.save(str(directory / "tokenizer.json"))
    streams = {
        "train": train,
        "prose": [sample for sample in held_out if sample.prose],
        "chat": [sample for sample in held_out if sample.messages],
    }
    tensors = {
        name: torch.tensor(list(chain.from_iterable(encode(tokenizer, stream))), dtype=torch.int32)
        for name, stream in streams.items()
    }
    save_file(tensors, directory / "tokens.safetensors")
    num_bytes = {name: sum(len(text_of(sample).encode()) for sample in stream) for name, stream in streams.items()}
    account = {"num_bytes": num_bytes, "sources": [asdict(source) for source in sources]}
    # Written last: its presence says that the other two files are whole.
    (directory / "dataset.json").write_text(json.dumps(account, indent=1), encoding="utf-8")


def _read(directory: Path) -> Dataset:
    account = json.loads((directory / "dataset.json").read_text(encoding="utf-8"))
    tensors = load_file(directory / "tokens.safetensors")
    return Dataset(
        tokenizer=Tokenizer.from_file(str(directory / "tokenizer.json")),
        train=tensors["train"],
        held_out=tuple(
            HeldOut(name, tensors[name], account["num_bytes"][name]) for name in ("prose", "chat") if len(tensors[name])
        ),
        sources=tuple(Source(**source) for source in account["sources"]),
    )
