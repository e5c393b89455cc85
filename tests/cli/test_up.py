"""`capstan up` as a whole: real engine, real gateway, real signals."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

MODEL = Path(__file__).parents[2] / "runtime_image" / "models" / "capstan-tiny"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (MODEL / "model.safetensors").exists(), reason="the bundled model is not in this checkout"),
]
TEXT = """
apiVersion: capstan.dev/v1alpha1
kind: InferenceDeployment
metadata: {name: whole}
spec:
  model: {source: {uri: "bundled://capstan-tiny"}, maxModelLength: 512}
  engine:
    batching: {maxSequences: 8, maxBatchedTokens: 128}
    kvCache: {memoryMebibytes: 64}
  slos: [{name: interactive, ttft: {thresholdMilliseconds: 5000}, tpot: {thresholdMilliseconds: 500}}]
"""


@pytest.fixture
def up(tmp_path):
    """Start `capstan up` with arguments; whatever happens it is ended."""
    (tmp_path / "x.yaml").write_text(TEXT)
    started = []

    def start(*arguments):
        command = [sys.executable, "-m", "capstan_cli", "up", "x.yaml", "--port", "0", "--run-dir", "run", *arguments]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def until(process, *wanted):
    """Read lines until one holds a wanted text; gives that line."""
    said = []
    for line in process.stdout:
        said.append(line)
        if any(text in line for text in wanted):
            return line
    pytest.fail("".join(said))


def children_of(pid):
    """Processes below `pid`, by their state files."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found += [int(stat.parent.name), *children_of(int(stat.parent.name))]
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone_within(pids, seconds):
    deadline = time.monotonic() + seconds
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not left


def test_a_replay_serves_every_request_and_writes_its_report(up, tmp_path):
    rows = "".join(f"{i * 0.2},{20 + i},8\n" for i in range(8))
    (tmp_path / "t.csv").write_text(f"t,prompt,output\n{rows}")
    process = up("--replay", "t.csv", "--report", "out", "--settle", "1")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["requests"]["completed"] == report["requests"]["accepted"] == 8
    assert report["slos"][0]["attainment_percent"] == 100.0
    assert report["generator"]["prompt_tokens_off_by_max"] <= 3
    assert list(report["processors"]["replicas"].values())
    assert (tmp_path / "out" / "report.png").exists()
    first = json.loads((tmp_path / "run" / "decisions.jsonl").read_text().splitlines()[0])
    assert {"now", "deployment", "observation", "memory", "decision"} <= first.keys()


@contextmanager
def streaming(endpoint, max_tokens):
    """An answer that has begun."""
    body = {"model": "whole", "prompt": "The", "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{endpoint}/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.readline()
        yield answer


def test_ctrl_c_finishes_the_open_answer_and_leaves_no_process(up):
    process = up()
    endpoint = until(process, "endpoint ").split()[-1]
    until(process, " Ready")
    with streaming(endpoint, 200) as answer:
        pids = children_of(process.pid)
        assert len(pids) >= 2
        process.send_signal(signal.SIGINT)
        rest = answer.read().decode()
    out, _ = process.communicate(timeout=60)
    assert "data: [DONE]" in rest
    assert '"finish_reason":"length"' in rest.replace(" ", "")
    assert process.returncode == 0, out
    assert gone_within(pids, 10)


def test_a_second_ctrl_c_stops_at_once(up):
    process = up()
    endpoint = until(process, "endpoint ").split()[-1]
    until(process, " Ready")
    with streaming(endpoint, 500):
        pids = children_of(process.pid)
        process.send_signal(signal.SIGINT)
        until(process, "Once more stops at once")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 130, out
    assert "Traceback" not in out
    assert gone_within(pids, 10)


def test_an_edit_is_applied_and_a_broken_one_is_told(up, tmp_path):
    process = up()
    until(process, " Ready")
    (tmp_path / "x.yaml").write_text(TEXT.replace("5000", "many"))
    assert "thresholdMilliseconds" in until(process, "turn failed")
    (tmp_path / "x.yaml").write_text(TEXT.replace("5000", "4000"))
    until(process, "decision Roll")
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
