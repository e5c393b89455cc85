"""Fixtures of the tests that run the whole house: real operator, real gateway, real engines, the shipped model."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Test folders are no packages; the modules beside this file are imported by name.
sys.path.insert(0, str(Path(__file__).parent))

from house import House, document

FLEET = "fleet"


@pytest.fixture
def build() -> Iterator[Callable[[dict[str, Any]], House]]:
    """Start houses; whatever happens, nothing of them outlives the test."""
    houses: list[House] = []

    def start(of: dict[str, Any]) -> House:
        houses.append(House(of))
        return houses[-1]

    yield start
    for house in houses:
        house.close()


@pytest.fixture(scope="module")
def fleet() -> Iterator[House]:
    """Two replicas that stay two, shared by the tests of a module."""
    house = House(document(FLEET, scaling={"minReplicas": 2, "maxReplicas": 2}))
    yield house
    house.close()
