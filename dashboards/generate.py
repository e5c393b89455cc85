"""Write the dashboards, the rules and the runbook from the metric catalogue. `make generate` runs it."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# This folder is a part of the project and no installed package.
sys.path.append(str(ROOT))

from dashboards import alerts, control_plane, deployment, overview, rules, runbook  # noqa: E402


def render() -> dict[str, str]:
    """The text of each generated file, by its path from the project's root."""
    return {
        "dashboards/generated/overview.json": overview.render(),
        "dashboards/generated/deployment.json": deployment.render(),
        "dashboards/generated/operator.json": control_plane.render(),
        "dashboards/generated/rules.yaml": rules.render([*rules.RECORDS, *alerts.groups()]),
        "dashboards/runbook.md": runbook.render(),
    }


if __name__ == "__main__":
    for path, text in render().items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text, encoding="utf-8")
