"""Debian's Prometheus on this machine, for a test: it scrapes a list of targets and evaluates the generated rules.

Also what a test asks it: every query of a dashboard, with a viewer's choices in place, until each has given data.
"""

import asyncio
import json
import math
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from dashboards.ask import NoAnswer, Prometheus, with_choices

WITHIN_S = 90.0
_RULES = Path(__file__).resolve().parents[2] / "dashboards/generated/rules.yaml"


@dataclass(frozen=True)
class Targets:
    """The list of what is scraped, which Prometheus reads again whenever it changes."""

    file: Path

    def tell(self, targets: Sequence[tuple[str, Mapping[str, str]]]) -> None:
        """(host:port, the labels that a PodMonitor would give) of each."""
        scratch = self.file.with_suffix(".new")
        scratch.write_text(json.dumps([{"targets": [address], "labels": labels} for address, labels in targets]))
        scratch.replace(self.file)


@contextmanager
def serving(directory: Path, program: str) -> Iterator[tuple[Prometheus, Targets]]:
    """A Prometheus that scrapes its targets every second; `program` is its path."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    targets = Targets(directory / "targets.json")
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(_RULES)],
        "scrape_configs": [
            {
                "job_name": "capstan",
                "honor_labels": True,
                "file_sd_configs": [{"files": [str(targets.file)], "refresh_interval": "1s"}],
            }
        ],
    }
    file = directory / "prometheus.yaml"
    file.write_text(yaml.safe_dump(configuration))
    arguments = ("--config.file", str(file), "--storage.tsdb.path", str(directory / "tsdb"))
    listen = ("--web.listen-address", f"127.0.0.1:{port}", "--log.level", "warn")
    with (
        (directory / "prometheus.log").open("w") as log,
        subprocess.Popen([program, *arguments, *listen], stdout=log, stderr=subprocess.STDOUT) as server,
    ):
        try:
            yield Prometheus(f"http://127.0.0.1:{port}"), targets
        finally:
            server.terminate()


def asked(document: Mapping[str, Any], **choices: str) -> dict[str, str]:
    """Every query of a dashboard's panels and annotations, by what it is for."""
    queries = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in document["panels"]
        for target in panel.get("targets", [])
    }
    queries |= {mark["name"]: mark["expr"] for mark in document.get("annotations", {}).get("list", [])}
    chosen = {"__rate_interval": "15s", "__range": "5m", **choices}
    return {name: with_choices(expr, **chosen) for name, expr in queries.items()}


async def all_have_data(prometheus: Prometheus, queries: Mapping[str, str]) -> None:
    """Wait until each of the queries has given data at least once; fails with those that have not."""
    empty, deadline = dict(queries), time.monotonic() + WITHIN_S
    while empty and time.monotonic() < deadline:
        await asyncio.sleep(1)  # Prometheus has no event for data that arrived
        answers = await asyncio.gather(*(asyncio.to_thread(_has_data, prometheus, expr) for expr in empty.values()))
        empty = {query: expr for (query, expr), answer in zip(empty.items(), answers, strict=True) if not answer}
    assert empty == {}


def _has_data(prometheus: Prometheus, expr: str) -> bool:
    """Whether the query gives at least one number, and not only NaN."""
    try:
        lines = prometheus.at(expr, time.time())
    except NoAnswer as error:
        if "Connection refused" in str(error):
            return False
        raise
    return any(math.isfinite(value) for line in lines for _, value in line.points)
