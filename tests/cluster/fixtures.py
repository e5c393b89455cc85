"""What both folders of tests on a cluster share: a word on the terminal, and a cluster that ends with the session."""

import os
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import pytest

from cluster import providers
from cluster.cluster import Cluster
from cluster.gobuild import Progress

_C = TypeVar("_C", bound=Cluster)


# The inherited descriptor to which lines go at once, if not to this process's terminal: the output of whoever runs
# several parts side by side. Opened anew it would have a place of its own in a file, and write over what others wrote.
PROGRESS_VARIABLE: Final = "CAPSTAN_TEST_PROGRESS"


@pytest.fixture(scope="session")
def progress(request: pytest.FixtureRequest) -> Progress:
    """Says a line at once, whatever is captured: a first build takes minutes."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    assert capture is not None
    assert reporter is not None
    elsewhere = os.environ.get(PROGRESS_VARIABLE)

    def say(line: str) -> None:
        if elsewhere:
            os.write(int(elsewhere), f"cluster: {line}\n".encode())
            return
        with capture.global_and_fixture_disabled():
            reporter.write_line(f"cluster: {line}")

    return say


def until_the_end(provide: Callable[[], _C]) -> Iterator[_C]:
    """The body of a fixture. Where no cluster is to be had, and none was asked for, tests are skipped and told why."""
    try:
        provided = provide()
    except providers.Unavailable as reason:
        if {providers.PROVIDER_VARIABLE, providers.KUBECONFIG_VARIABLE} & os.environ.keys():
            pytest.fail(f"the cluster that was asked for is not to be had: {reason}")
        pytest.skip(f"no cluster: {reason}")
    yield provided
    provided.end()
