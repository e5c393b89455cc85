"""The operator's file: what it may say, and how it is told what is wrong with it."""

import os
import socket
from pathlib import Path

import pytest

from capstan_operator import config as config_module
from capstan_operator.config import OperatorConfig, read_config
from capstan_operator.errors import InvalidConfig
from capstan_operator.main import main

IMAGES = "images: {engine: registry/engine:1, operator: registry/operator:1}\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "operator.yaml"
    path.write_text(text)
    return path


def test_images_are_all_that_must_be_said(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, IMAGES))
    assert config.watch_namespaces == []
    assert config.health_port == 8080
    assert (config.lease.duration_seconds, config.max_blind_seconds) == (15, 180)


def test_what_is_said_reaches_the_parts(tmp_path: Path) -> None:
    text = """
      watchNamespaces: [a, b]
      images: {engine: e:1, operator: o:1, pullPolicy: Never, pullSecrets: [s]}
      gateway: {cpuMillicores: 300, memoryMebibytes: 300}
      sourceEndpoints: {s3: {url: "http://minio:9000", allow_private: true}}
      turnIntervalSeconds: 2
      acceleratorBudgets: [{name: h200, nodeSelector: {product: H200}, accelerators: 32}]
    """
    config = read_config(written(tmp_path, text))
    installation = config.installation()
    assert (installation.engine_image, installation.pull_policy, installation.pull_secrets) == ("e:1", "Never", ("s",))
    assert (installation.gateway_cpu_millicores, installation.gateway_memory_mebibytes) == (300, 300)
    assert installation.s3 is not None
    assert installation.s3.url == "http://minio:9000"
    assert config.settings().turn_interval_s == 2
    assert config.accelerator_budgets[0].has("nvidia.com/gpu", {"product": "H200", "zone": "a"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "images: required"),
        (IMAGES + "watchNamespace: [a]", "watchNamespace: unknown field; did you mean watchNamespaces?"),
        (IMAGES + "healthPort: 99999", "healthPort: "),
        (IMAGES + "lease: {durationSeconds: 8}", "renewSeconds + marginSeconds must be below durationSeconds"),
        (IMAGES + "logLevel: LOUD", "logLevel: "),
        (IMAGES + "cpuShare: -1", "cpuShare: "),
        (IMAGES + "acceleratorBudgets: [{name: a, accelerators: -1}]", "acceleratorBudgets[0].accelerators: "),
        (IMAGES + "acceleratorBudgets: [{name: a, accelerators: 1}, {name: a, accelerators: 2}]", "'a' appears twice"),
        (IMAGES + "cpuShare: .nan", "operator.yaml: the document cannot be written as JSON"),
        ("images: [", "is not valid YAML"),
    ],
)
def test_a_fault_is_named_with_its_field(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        read_config(written(tmp_path, text))
    assert said in str(caught.value)


def test_a_short_key_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "key"
    config = OperatorConfig.model_validate({"images": {"engine": "e", "operator": "o"}, "keyFile": str(key)})
    with pytest.raises(InvalidConfig, match=r"keyFile: .* cannot be read"):
        config.key()
    key.write_bytes(b"short\n")
    with pytest.raises(InvalidConfig, match="has 5 bytes; at least 32"):
        config.key()
    key.write_bytes(b"x" * 32 + b"\n")
    assert config.key() == b"x" * 32


def test_two_operators_on_one_machine_differ_and_a_pod_keeps_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = OperatorConfig.model_validate({"images": {"engine": "e", "operator": "o"}})
    monkeypatch.setattr(config_module, "_NAMESPACE_FILE", tmp_path / "namespace")
    assert config.identity() == f"{socket.gethostname()}-{os.getpid()}"
    with pytest.raises(InvalidConfig, match=r"lease\.namespace: required"):
        config.lease_namespace()
    (tmp_path / "namespace").write_text("capstan-system\n")
    assert config.identity() == socket.gethostname()
    assert config.lease_namespace() == "capstan-system"


def test_the_process_says_what_is_wrong_and_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "--config", str(written(tmp_path, IMAGES + "bogus: 1"))])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("capstan-operator: ")
    assert "bogus: unknown field" in said
    assert "Traceback" not in said
