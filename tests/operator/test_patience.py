"""Who does not answer is asked more and more seldom, and at once again when it has answered or moved."""

from collections.abc import Sequence
from pathlib import Path

from worlds import NOW, deployment

from capstan_operator.admin import AdminClient
from capstan_operator.bounded_http import BoundedHttp
from capstan_operator.decide import Memory
from capstan_operator.decide.seen.observation import Phase
from capstan_operator.errors import ScrapeError
from capstan_operator.observe import Observer
from capstan_operator.patience import Patience
from capstan_operator.scrape import Page, Scraper
from capstan_operator.settings import OperatorSettings
from capstan_operator.world.base import GatewayFacts, ReplicaFacts


def asked_at(patience: Patience, seconds: int) -> list[int]:
    """When a target that never answers is asked, looking once a second."""
    asked = []
    for now in range(seconds):
        if patience.refuses("http://a", now) is None:
            asked.append(now)
            patience.failed("http://a", "silent", now)
    return asked


def test_pauses_double_after_a_few_failures_and_end_at_ten_seconds() -> None:
    assert asked_at(Patience(), 60) == [0, 1, 2, 3, 5, 9, 17, 27, 37, 47, 57]


def test_while_it_is_not_asked_its_last_failure_is_its_answer() -> None:
    patience = Patience()
    for now in range(4):
        patience.failed("http://a", f"failure {now}", now)
    assert patience.refuses("http://a", 3.5) == "failure 3"
    assert patience.refuses("http://b", 3.5) is None


def test_a_clock_that_is_set_back_keeps_nobody_waiting() -> None:
    patience = Patience()
    asked_at(patience, 10)
    assert patience.refuses("http://a", 10) is not None
    assert patience.refuses("http://a", 10 - 3600) is None


def test_an_answer_and_a_departure_are_forgiven() -> None:
    for forgive in (lambda p: p.answered("http://a"), lambda p: p.only({"http://b"})):
        patience = Patience()
        asked_at(patience, 10)
        forgive(patience)
        assert asked_at(patience, 4) == [0, 1, 2, 3]


class SilentWorld:
    """One ready replica that never answers."""

    endpoint = None

    def __init__(self) -> None:
        self.url = "http://10.0.0.1:8100"

    def model_directory(self, uri: str) -> Path:
        return Path("/models/tiny")

    async def gateways(self) -> Sequence[GatewayFacts]:
        return ()

    async def replicas(self) -> Sequence[ReplicaFacts]:
        return (ReplicaFacts("web-0", "one", Phase.READY, NOW, NOW, url=self.url, admin_url="http://10.0.0.1:9100"),)


async def test_a_silent_replica_is_a_fault_in_every_look_and_asked_in_few() -> None:
    asked: list[str] = []

    class Counted(Scraper):
        async def engine(self, url: str) -> Page:
            asked.append(url)
            raise ScrapeError(f"{url}/metrics does not answer")

    settings, now = OperatorSettings(), [NOW]
    http, world = BoundedHttp(settings), SilentWorld()
    observer = Observer(
        world,  # type: ignore[arg-type]
        Counted(http, settings),
        AdminClient(http, "token"),
        max_step_samples=1,
        clock=lambda: now[0],
    )
    for _ in range(20):
        seen = await observer.observe(deployment(), Memory())
        assert seen.faults == ("web-0: http://10.0.0.1:8100/metrics does not answer",)
        assert seen.replicas[0].metrics is None
        now[0] += 1
    assert len(asked) == 7
    world.url = "http://10.0.0.2:8100"
    await observer.observe(deployment(), Memory())
    assert len(asked) == 8, "at another address it is another one"
    await http.close()
