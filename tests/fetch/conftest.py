"""A hub and a bucket that hold the same small checkpoint."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_bucket import FakeBucket
from fake_hub import FakeHub
from fetching import UNWANTED, WANTED


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub(WANTED | UNWANTED).running() as running:
        yield running


@pytest.fixture
async def bucket() -> AsyncIterator[FakeBucket]:
    objects = {f"llm/tiny/{path}": content for path, content in (WANTED | UNWANTED).items()}
    async with FakeBucket(objects | {"llm/tiny/": b"", "llm/tiny2/config.json": b"{}"}).running() as running:
        yield running
