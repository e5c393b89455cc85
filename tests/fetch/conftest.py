"""A hub and a bucket that hold the same small checkpoint."""

from collections.abc import AsyncIterator

import pytest

from fetch.fake_bucket import FakeBucket
from fetch.fake_hub import FakeHub
from fetch.fetching import UNWANTED, WANTED


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub(WANTED | UNWANTED).running() as running:
        yield running


@pytest.fixture
async def bucket() -> AsyncIterator[FakeBucket]:
    objects = {f"llm/tiny/{path}": content for path, content in (WANTED | UNWANTED).items()}
    async with FakeBucket(objects | {"llm/tiny/": b"", "llm/tiny2/config.json": b"{}"}).running() as running:
        yield running
