"""Write what is generated from the contract: the CRD and the reference manual. `make generate` runs it."""

from pathlib import Path

from capstan_api import crd, reference

ROOT = Path(__file__).resolve().parents[1]


def render() -> dict[str, str]:
    """The text of each generated file, by its path from the project's root."""
    return {"crds/inferencedeployments.yaml": crd.render(), "docs/reference.md": reference.render()}


if __name__ == "__main__":
    for path, text in render().items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text, encoding="utf-8")
