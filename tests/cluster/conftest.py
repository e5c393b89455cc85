"""The cluster that tests run against whose pods really run; `tests/control_plane` has what needs an API server alone.

It is started once, by the first test that asks, and ended with the session. A test says what else it needs:
`@pytest.mark.needs_cluster("services")`, and is skipped, with the reason, where the cluster lacks it.
"""

from collections.abc import Iterator

import pytest

from cluster import images, providers
from cluster.cluster import Capability, Cluster
from cluster.fixtures import progress as progress  # a fixture is known where it is imported
from cluster.fixtures import until_the_end
from cluster.gobuild import Progress
from cluster.images import Image, Loader
from cluster.installation import Installation


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs_cluster(*capabilities): skipped where the cluster lacks one of them")


@pytest.fixture(scope="session")
def cluster(progress: Progress) -> Iterator[Cluster]:
    """A cluster whose pods run, from the first provider that works (see providers.py)."""
    yield from until_the_end(lambda: providers.cluster(progress))


@pytest.fixture(scope="session")
def built(cluster: Cluster, progress: Progress) -> dict[str, Image]:
    """Both images, by name, built from the Dockerfile and known to every node."""
    _skip_without(cluster, {Capability.IMAGE_LOADING})
    made = images.build(progress)
    loader = Loader(cluster)
    for image in made.values():
        loader.load(image, progress)
    return made


@pytest.fixture(scope="module")
def installation(cluster: Cluster, built: dict[str, Image], progress: Progress) -> Iterator[Installation]:
    """The chart, installed in a namespace of its own with the images that were built.

    For one module only: others run an operator of their own before the same API server.
    """
    with cluster.namespace() as namespace:
        installed = Installation(cluster, namespace, built)
        # Helm does not take over a definition that another test applied.
        installed.remove_definition()
        progress(f"operator installed by Helm and ready in {installed.install():.1f} s")
        yield installed
        installed.uninstall()
        installed.remove_definition()


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A fresh namespace of `cluster`."""
    with cluster.namespace() as name:
        yield name


@pytest.fixture(autouse=True)
def _needs(request: pytest.FixtureRequest) -> None:
    marker = request.node.get_closest_marker("needs_cluster")
    if marker is None:
        return
    _skip_without(request.getfixturevalue("cluster"), {Capability(name) for name in marker.args})


def _skip_without(cluster: Cluster, needed: set[Capability]) -> None:
    if lacking := sorted(needed - cluster.capabilities):
        pytest.skip(f"the {cluster.provider} cluster lacks {', '.join(lacking)}")
