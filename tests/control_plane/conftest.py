"""A real API server and controllers before simulated nodes: what needs no pod to run; `tests/cluster` has the rest."""

from collections.abc import Iterator

import pytest

from cluster import providers
from cluster.embedded import EmbeddedCluster
from cluster.fixtures import progress as progress  # a fixture is known where it is imported
from cluster.fixtures import until_the_end
from cluster.gobuild import Progress


@pytest.fixture(scope="session")
def control_plane(progress: Progress) -> Iterator[EmbeddedCluster]:
    """Started once, by the first test that asks, and ended with the session; needs no root."""
    yield from until_the_end(lambda: providers.control_plane(progress))
