"""What the README tells people to type is what works: each command is run by a test, or says here why it is not."""

import os
import re
import shlex
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from readme import ROOT, TEXT, commands

MODEL = ROOT / "runtime_image/models/capstan-tiny"
HERE = "tests/test_readme.py"
ON_A_CLUSTER = "tests/cluster/test_readme_commands.py"
CAPSTAN = (sys.executable, "-m", "capstan_cli")
READY_WITHIN_S = 120.0
RUN_BY = {
    ".venv/bin/capstan up /path/to/checkpoint": HERE,
    ".venv/bin/capstan chat": HERE,
    ".venv/bin/capstan bench": HERE,
    ".venv/bin/capstan plan": HERE,
    ".venv/bin/capstan simulate": HERE,
    ".venv/bin/capstan up my-deployment.yaml": "tests/cli/test_up.py",
    "helm": ON_A_CLUSTER,
    "kubectl": ON_A_CLUSTER,
    "curl": ON_A_CLUSTER,
}
NOT_RUN = {
    "make demo": "three minutes on a machine that does nothing else; that it is understood is tested here",
    "make test": "this is it",
    "docker build": "needs a registry; tests/cluster/images.py builds the same targets on local bases",
    "kind load": "needs Docker; the embedded cluster is given the same images by its own way",
}


@pytest.mark.parametrize("command", commands())
def test_every_command_is_run_by_a_test_or_has_a_reason(command: str) -> None:
    [known] = {key for key in {**RUN_BY, **NOT_RUN} if f"{command} ".startswith(f"{key} ")}
    assert known in NOT_RUN or (ROOT / RUN_BY[known]).is_file()


def test_no_test_is_kept_for_a_command_that_nobody_is_told_any_more() -> None:
    told = commands()
    assert [key for key in {**RUN_BY, **NOT_RUN} if not any(line.startswith(key) for line in told)] == []


def test_the_images_are_those_that_the_chart_installs() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    values = yaml.safe_load((ROOT / "helm/capstan/values.yaml").read_text("utf-8"))
    installed = {f"{image['repository']}:{version}" for image in (values["image"], values["engine"]["image"])}
    text = "\n".join(commands())
    assert set(re.findall(r"--tag (\S+)", text)) == installed
    assert set(re.findall(r"capstan\.dev/capstan\S*", text)) == installed


def test_the_oldest_kubernetes_is_that_of_the_chart() -> None:
    chart = yaml.safe_load((ROOT / "helm/capstan/Chart.yaml").read_text("utf-8"))
    assert re.findall(r"Kubernetes from (\S+) on", TEXT) == re.findall(r"^>=(\d+\.\d+)", chart["kubeVersion"])


def test_the_images_are_targets_of_the_dockerfile_and_hold_every_package() -> None:
    dockerfile = (ROOT / "runtime_image" / "Dockerfile").read_text("utf-8")
    stages = re.findall(r"^FROM \S+ AS (\S+)$", dockerfile, re.MULTILINE)
    built = re.findall(r"--target (\S+)", "\n".join(commands()))
    assert len(built) == 2
    assert set(built) <= set(stages)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    context = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert [package for package in packages if f"!{package}" not in context] == []


def test_every_target_of_make_that_is_named_exists() -> None:
    named = set(re.findall(r"(?:`|^ {4})make ([a-z-]+)", TEXT, re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert named
    assert named <= targets


def test_every_link_leads_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)", TEXT)
    assert len(targets) > 5
    assert [target for target in targets if "://" not in target and not (ROOT / target).exists()] == []


def test_the_demo_is_a_command_that_capstan_understands() -> None:
    # Without what an outer make hands down, such as its job server.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    make = ("make", "--dry-run", "--no-print-directory", "demo")
    printed = subprocess.run(make, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    arguments = re.sub(r"\\\n\s*", "", printed).partition("bin/capstan ")[2]
    assert "--replay" in arguments
    done = subprocess.run([*CAPSTAN, *shlex.split(arguments), "--print"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["kind"] == "InferenceDeployment"


@pytest.mark.slow
@pytest.mark.parametrize("command", commands("Ask before you pay"), ids=lambda command: command.split()[1])
def test_what_is_asked_before_is_answered(command: str) -> None:
    done = subprocess.run([*CAPSTAN, *command.split()[1:]], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) > 3


@pytest.mark.slow
@pytest.mark.skipif(not (MODEL / "model.safetensors").exists(), reason="the bundled model is not in this checkout")
def test_a_checkpoint_is_served_and_asked(tmp_path: Path) -> None:
    told = commands("Serve your own model")
    [up] = [line for line in told if line.endswith("/path/to/checkpoint")]
    [bench] = [line for line in told if " bench " in line]
    with serving(up.replace("/path/to/checkpoint", str(MODEL)), tmp_path) as url:
        chat = subprocess.run(
            [*CAPSTAN, "chat", "--url", url, "--max-tokens", "8"],
            input="Hello.\n", capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert chat.returncode == 0, chat.stderr
        assert "TTFT" in chat.stderr
        asked = bench.replace("http://127.0.0.1:8000", url).replace("--duration 30", "--duration 3")
        assert asked != bench
        done = subprocess.run([*CAPSTAN, *asked.split()[1:]], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "TTFT" in done.stdout


@contextmanager
def serving(up: str, folder: Path) -> Iterator[str]:
    """`capstan up` as it is told, but on a free port: the address that clients use, once it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*CAPSTAN, *up.split()[1:], "--port", str(port), "--run-dir", str(folder), "--plain"]
    said = folder / "said"
    with said.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            deadline = time.monotonic() + READY_WITHIN_S
            while not re.search(r"^\S+ +replica \S+ Ready$", said.read_text(), re.MULTILINE):
                assert process.poll() is None, said.read_text()
                assert time.monotonic() < deadline, said.read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
