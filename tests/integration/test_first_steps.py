"""What a newcomer tries first, right and wrong: every mistake is one clear sentence before anything starts."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from house import House, document

from capstan_api.v1alpha1 import parse
from capstan_operator.world.processes.checkpoints import checkpoint_directory


def capstan(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "capstan_cli", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "name", ["my model", "Ein-Größeres-Modell", "A-Checkpoint-Whose-Name-Is-Longer-Than-A-Kubernetes-Name-May-Be", "7B"]
)
def test_any_directory_name_gives_a_resource_that_leads_back_to_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    printed = capstan("up", name, "--print", cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    deployment = parse(yaml.safe_load(printed.stdout))
    assert checkpoint_directory(deployment.spec.model.source.uri) == tmp_path / name


def test_a_model_that_is_not_here_is_said_before_anything_starts(tmp_path: Path) -> None:
    of = document("lost", scaling={}, model={"source": {"uri": "bundled://no-such-model"}})
    (tmp_path / "lost.yaml").write_text(yaml.safe_dump(of))
    refused = capstan("up", "lost.yaml", "--port", "0", cwd=tmp_path)
    assert refused.returncode == 2
    assert "bundled://no-such-model" in refused.stderr
    assert "CAPSTAN_MODELS" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["lost.yaml"]


async def test_a_second_house_in_the_same_run_directory_is_refused(
    tmp_path: Path, build: Callable[[dict[str, Any]], House]
) -> None:
    house = build(document("first", scaling={}))
    await house.said("replica first")
    refused = capstan("up", str(house.file), "--port", "0", "--run-dir", str(house.run_dir), cwd=tmp_path)
    assert refused.returncode == 2
    assert "another capstan up uses" in refused.stderr
    assert "--run-dir" in refused.stderr
    await house.stop()
