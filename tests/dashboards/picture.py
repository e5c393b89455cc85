"""Draw the README's picture of a dashboard: a real deployment, scraped by a real Prometheus while its load changes.

    .venv/bin/python tests/dashboards/picture.py overview docs/slo-overview.png

Takes about four minutes and wants a machine that does nothing else.
"""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from dashboards.draw import GENERATED, Drawing  # noqa: E402
from scraped import NAMESPACE, scraped  # noqa: E402

# A quiet start, a rush that one replica cannot serve, and quiet again.
PROFILE = ((40.0, 2), (90.0, 160), (80.0, 2))


async def photograph(dashboard: str, output: Path, prometheus: str) -> None:
    document = yaml.safe_load((ROOT / "crds/examples/quickstart.yaml").read_text())
    with tempfile.TemporaryDirectory(prefix="picture-") as directory:
        async with scraped(document, Path(directory), prometheus, PROFILE) as running:
            await running.ready()
            began = time.time() - 10
            await asyncio.sleep(sum(seconds for seconds, _ in PROFILE))
            choices = {"namespace": NAMESPACE, "deployment": running.name, "__rate_interval": "15s"}
            drawing = Drawing(running.prometheus, began, time.time(), **choices)
            panels = json.loads((GENERATED / f"{dashboard}.json").read_text("utf-8"))
            await asyncio.to_thread(drawing.write, panels, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dashboard", choices=sorted(path.stem for path in GENERATED.glob("*.json")))
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    program = shutil.which("prometheus")
    if program is None:
        raise SystemExit("prometheus is missing; on Debian: apt-get install prometheus")
    asyncio.run(photograph(options.dashboard, options.output, program))


if __name__ == "__main__":
    main()
