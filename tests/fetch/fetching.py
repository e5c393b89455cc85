"""One fetch as the tests want it: a small checkpoint, short patience, local endpoints, and what came of it."""

import asyncio
import os
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capstan_api.fetch_args import FetchArgs, SourceEndpoint
from capstan_fetch.fetch import fetch
from capstan_fetch.manifest import Manifest
from capstan_fetch.progress import Progress
from fetch.fake_bucket import KEY, KEY_ID, REGION, FakeBucket
from fetch.fake_hub import FakeHub

# Weights in the CDN, small files in the repository, and what has to be left alone.
WANTED = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}" * 5000,
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/tools.jinja": b"{{ tools }}",
    "model.safetensors": random.Random(5).randbytes(3_000_000),
}
UNWANTED = {
    "README.md": b"# hello",
    ".gitattributes": b"* lfs",
    "pytorch_model.bin": b"\x80\x04" + b"evil" * 100,
    "modeling_evil.py": b"import os",
    "onnx/config.json": b"{}",
    "consolidated.safetensors": b"the same weights once more",
    "images/Bild ä.png": b"png",
}

AWS = {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": KEY, "AWS_REGION": REGION}


def hub_args(hub: FakeHub, destination: Path, **fields: Any) -> FetchArgs:
    endpoint = SourceEndpoint(url=hub.url, redirect_hosts=(hub.cdn,), allow_private=True)
    return args(**{"uri": "hf://capstan/tiny", "destination": destination, "endpoint": endpoint, **fields})


def bucket_args(bucket: FakeBucket, destination: Path, **fields: Any) -> FetchArgs:
    endpoint = SourceEndpoint(url=bucket.url, allow_private=True)
    return args(**{"uri": "s3://models/llm/tiny", "destination": destination, "endpoint": endpoint, **fields})


def args(**fields: Any) -> FetchArgs:
    return FetchArgs(**{"patience_s": 5.0, "stall_timeout_s": 5.0, "admin_port": 0, **fields})


async def fetched(
    arguments: FetchArgs, environment: Mapping[str, str] | None = None, progress: Progress | None = None
) -> Manifest:
    return await fetch(arguments, environment or {}, progress or Progress())


def contents(directory: Path) -> dict[str, bytes]:
    """Everything below `directory` that is not the fetcher's own book-keeping."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith(".capstan")
    }


async def fetcher(config: Path) -> asyncio.subprocess.Process:
    """A fetcher as a process, with nothing of our environment."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "capstan_fetch", "--config", str(config)),
        env={"PATH": os.environ["PATH"]},
        stderr=asyncio.subprocess.PIPE,
    )


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
