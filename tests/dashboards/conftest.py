"""What the tests of the dashboards share: the generated documents, and Debian's Prometheus tools where they are."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# `dashboards` is a part of the project and no installed package; modules beside this file are imported by name.
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

GENERATED = ROOT / "dashboards/generated"


@pytest.fixture(scope="session")
def documents() -> dict[str, dict[str, Any]]:
    """The dashboards by file name."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(GENERATED.glob("*.json"))}


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is missing; on Debian: apt-get install prometheus")
    return path


@pytest.fixture(scope="session")
def promtool() -> str:
    return _tool("promtool")


@pytest.fixture(scope="session")
def prometheus() -> str:
    return _tool("prometheus")
