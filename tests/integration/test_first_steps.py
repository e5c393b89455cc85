"""What a newcomer tries first, right and wrong: every mistake is one clear sentence before anything starts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from house import document

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
