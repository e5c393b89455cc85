"""What can be known of the images without building them."""

import json
import re
import subprocess
import sys
from pathlib import Path

DOCKERFILE = (Path(__file__).parents[2] / "runtime_image" / "Dockerfile").read_text()
INSTRUCTIONS = [
    line for line in DOCKERFILE.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")
]


def stages() -> dict[str, tuple[str, list[str]]]:
    """Name of each stage: what it begins with, and its instructions."""
    found: dict[str, tuple[str, list[str]]] = {}
    for line in INSTRUCTIONS:
        if begun := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            base, name = begun.groups()
            found[name] = (base, [])
        elif found:
            found[name][1].append(line)
    return found


def test_every_command_of_the_build_does_without_a_shell() -> None:
    commands = [
        re.sub(r"--\w+=\S+", "", line.removeprefix("RUN")).strip() for line in INSTRUCTIONS if "RUN" in line[:3]
    ]
    assert len(commands) > 8
    for command in commands:
        assert all(isinstance(word, str) for word in json.loads(command)), command


def test_of_compilers_and_installers_the_images_have_only_what_they_made() -> None:
    found = stages()
    for image in ("capstan", "capstan-engine"):
        base, copied = found[image][0], [line for line in found[image][1] if "--from=" in line]
        while base in found or base == "torch-${TORCH}":
            base = found["torch-cuda" if base == "torch-${TORCH}" else base][0]
        assert base == "${RUNTIME}"
        for line in copied:
            _, path, _ = line.removeprefix("COPY --from=").split()
            assert path in ("/opt/packages", "/opt/capstan", "/native", "/driver"), line


def test_the_operator_imports_nothing_of_what_its_image_leaves_out() -> None:
    assert "/opt/packages/kubernetes/{part}/api" in DOCKERFILE
    program = "import capstan_operator.main, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    imported = done.stdout.split()
    assert "kubernetes.aio.client.api_client" in imported
    assert not [name for name in imported if re.match(r"kubernetes\.(aio\.)?client\.api(\.|$)", name)]
