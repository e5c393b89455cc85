"""Fixtures of the front end's tests: a server on loopback ports around a scripted engine."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from capstan_engine.text import Tokenizer

# Test folders are no packages; the modules beside this file are imported by name.
sys.path.insert(0, str(Path(__file__).parent))

from scripted_client import ScriptedClient
from serving import MODEL, TEXT, Served, serving


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(MODEL)


@pytest.fixture
async def engine(tokenizer: Tokenizer) -> ScriptedClient:
    """Says `TEXT`, then ends the sequence."""
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    assert tokenizer.eos_token_id is not None
    return ScriptedClient(lambda submit: [*ids, tokenizer.eos_token_id or 0] * 4)


@pytest.fixture
async def served(engine: ScriptedClient) -> AsyncIterator[Served]:
    async with serving(engine) as running:
        yield running


@pytest.fixture
async def served_on_network(engine: ScriptedClient) -> AsyncIterator[Served]:
    async with serving(engine, network=True) as running:
        yield running
