"""What a person meets at the prompt: quick help, one clear sentence for each mistake, exit codes with a meaning."""

import asyncio
import gzip
import io
import json
import socket
import subprocess
import sys
import threading

import pytest

from command_line import called

HEAVY = ("torch", "matplotlib", "numpy", "aiohttp", "pydantic", "rich.live", "capstan_operator")
VALID = """
apiVersion: capstan.dev/v1alpha1
kind: InferenceDeployment
metadata: {name: quick}
spec:
  model: {source: {uri: "bundled://capstan-tiny"}}
  slos:
    - name: interactive
      ttft: {thresholdMilliseconds: 1000}
      tpot: {thresholdMilliseconds: 60}
"""


@pytest.fixture
def capstan(monkeypatch, capsys):
    """Run the command line; gives (exit code, stdout, stderr)."""

    def call(*arguments):
        return called(monkeypatch, capsys, *arguments)

    return call


def test_help_imports_nothing_heavy():
    probe = (
        "import sys; sys.argv = ['capstan', '--help']\n"
        "from capstan_cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "up" in done.stdout
    assert "bench" in done.stdout


@pytest.mark.parametrize("command", [[], ["up"], ["bench"], ["chat"]])
def test_each_command_explains_itself(capstan, command):
    code, out, _ = capstan(*command, "--help")
    assert code == 0
    assert "Usage" in out


def test_a_missing_file_is_named(capstan, tmp_path):
    code, _, err = capstan("up", tmp_path / "absent.yaml")
    assert code == 2
    assert "absent.yaml" in err
    assert "No such file" in err


def test_bad_yaml_is_said_to_be_that(capstan, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: [1,\nb: }")
    code, _, err = capstan("up", path)
    assert code == 2
    assert "not valid YAML" in err


def test_an_unknown_field_is_named_by_its_path(capstan, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(VALID.replace("slos:", "replica: 3\n  slos:"))
    code, _, err = capstan("up", path)
    assert code == 2
    assert "spec.replica" in err


def test_every_fault_has_its_line(capstan, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(VALID.replace("1000", "0").replace("60}", "0}"))
    _, _, err = capstan("up", path)
    assert "spec.slos[0].ttft.thresholdMilliseconds" in err
    assert "spec.slos[0].tpot.thresholdMilliseconds" in err


def test_a_directory_without_a_model_says_what_is_missing(capstan, tmp_path):
    code, _, err = capstan("up", tmp_path)
    assert code == 2
    assert "config.json" in err


def test_a_model_directory_becomes_a_resource_that_can_be_printed_and_used(capstan, tmp_path):
    model = tmp_path / "My Model_1.5"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"max_position_embeddings": 2048}))
    code, out, _ = capstan("up", model, "--print")
    assert code == 0
    assert "maxModelLength: 2048" in out
    written = tmp_path / "printed.yaml"
    written.write_text(out)
    code, again, err = capstan("up", written, "--print")
    assert code == 0, err
    assert "name: my-model-1-5" in again


def test_a_report_without_a_load_is_refused(capstan, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(VALID)
    code, _, err = capstan("up", path, "--report", tmp_path / "out")
    assert code == 2
    assert "--replay" in err


@pytest.mark.parametrize(
    "content",
    [b"\x1f\x8b\x08\0\0\0\0\0\0\xff\xff\xff\xff", b'{"conversations": "' + 200_000 * b"x" + b'"}'],
    ids=["a damaged archive", "a data set that is no table"],
)
@pytest.mark.parametrize("command", ["up", "bench", "simulate"])
def test_a_file_that_is_no_trace_is_named(capstan, tmp_path, command, content):
    path, trace = tmp_path / "x.yaml", tmp_path / "trace.csv.gz"
    path.write_text(VALID)
    trace.write_bytes(content if content[:2] == b"\x1f\x8b" else gzip.compress(content))
    options = {
        "up": (path, "--replay", trace),
        "bench": ("--trace", trace),
        "simulate": ("--trace", trace, "--spec", path),
    }
    code, _, err = capstan(command, *options[command])
    assert code == 2
    assert str(trace) in err


def test_a_change_to_what_is_no_resource_is_refused_by_the_files_name(capstan, tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("t,prompt,output\n0,1,1\n")
    code, _, err = capstan("simulate", "--trace", trace, "--spec", trace, "--set", "scaling.maxReplicas=3")
    assert code == 2
    assert "trace.csv" in err
    assert "expected a mapping with apiVersion" in err


@pytest.mark.parametrize("command", ["bench", "chat"])
@pytest.mark.parametrize("address", ["http://[::1:8000", "ftp://127.0.0.1", "http://127.0.0.1:port"])
def test_what_is_no_address_is_quoted(capstan, command, address):
    load = ("--rate", "1") if command == "bench" else ()
    code, _, err = capstan(command, "--url", address, *load)
    assert code == 2
    assert f"{address!r} is not an address such as" in err


def test_a_broken_trace_is_found_before_anything_starts(capstan, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(VALID)
    code, _, err = capstan("up", path, "--replay", tmp_path / "no.csv", "--run-dir", tmp_path / "run")
    assert code == 2
    assert "no.csv" in err
    assert not (tmp_path / "run").exists()


def test_a_port_in_use_is_named_with_the_way_out(capstan, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(VALID)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = capstan("up", path, "--port", port, "--run-dir", tmp_path / "run")
    assert code == 2
    assert f"port {port}" in err
    assert "--port" in err


def test_a_run_directory_that_cannot_be_made_is_named(capstan, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(VALID)
    code, _, err = capstan("up", path, "--port", 0, "--run-dir", path / "below-a-file")
    assert code == 2
    assert "below-a-file" in err


def test_a_run_directory_that_cannot_be_written_to_is_named(capstan, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(VALID)
    # Whoever may write anywhere cannot write here either.
    (tmp_path / "run" / "lock").mkdir(parents=True)
    code, _, err = capstan("up", path, "--port", 0, "--run-dir", tmp_path / "run")
    assert code == 2
    assert str(tmp_path / "run") in err
    assert "--run-dir" in err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "choose one load"),
        (["--rate", "1", "--concurrency", "2"], "choose one load"),
        (["--rate", "1", "--slo-class-mix", "x"], "--slo-class-mix"),
        (["--trace", "t.csv", "--speedup", "fast"], "--speedup"),
        (["--rate", "1", "--url", "http://example.org"], "--allow-remote"),
        (["--rate", "1", "--url", "http://127.0.0.1:1"], "capstan up"),
    ],
)
def test_a_wrong_bench_option_is_one_sentence(capstan, arguments, complaint):
    code, _, err = capstan("bench", *arguments)
    assert code in {2, 4}
    assert complaint in err
    assert err.count("\n") == 1


def test_more_requests_than_permitted_are_not_sent(capstan):
    code, _, err = capstan("bench", "--rate", "100", "--duration", "100", "--max-requests", "50")
    assert code == 2
    assert "--max-requests" in err


@pytest.fixture
def live(fake_server_class, serve):
    """The fake server on a thread of its own, for commands that run their own event loop."""
    fake = fake_server_class()
    ready, loop = threading.Event(), asyncio.new_event_loop()
    done = asyncio.Event()

    async def run():
        async with serve(fake):
            ready.set()
            await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    assert ready.wait(10)
    yield fake
    loop.call_soon_threadsafe(done.set)
    thread.join(10)
    loop.close()


def test_a_bench_run_prints_and_writes_its_figures(capstan, live, tmp_path):
    report, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    code, out, err = capstan(
        *("bench", live.base, "--rate", "200", "--duration", "0.2", "--prompt-tokens", "40", "--output-tokens", "5"),
        *("--slo-class-mix", "interactive=1,batch=1", "--ttft-ms", "5000", "--json", report, "--plot", picture),
    )
    assert code == 0, err
    assert "interactive" in out
    assert "lost" in out
    document = json.loads(report.read_text())
    summary = document["summary"]
    assert summary["completed"] == summary["requests"] == len(live.bodies) > 10
    assert summary["attainment_percent"] == 100.0
    assert summary["prompt_tokens_off_by_max"] == 0
    assert {r["slo_class"] for r in document["requests"]} == {"interactive", "batch"}
    assert picture.stat().st_size > 10_000


def test_a_bench_run_with_a_cut_stream_exits_with_1(capstan, live):
    live.behaviour = lambda number: "error event" if number == 1 else "complete"
    code, out, _ = capstan("bench", live.base, "--rate", "100", "--duration", "0.1", "--output-tokens", "4")
    assert code == 1
    assert "1 truncated" in out
    assert "replica_lost" in out


def test_a_bench_in_a_closed_loop_runs(capstan, live):
    code, out, err = capstan("bench", live.base, "--concurrency", "3", "--duration", "0.2", "--output-tokens", "2")
    assert code == 0, err
    assert "completed" in out


def test_a_piped_chat_answers_line_by_line_and_remembers(capstan, live, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n\nagain\n/reset\nnew\n/quit\nnever\n"))
    code, out, err = capstan("chat", "--url", live.base, "--max-tokens", "3")
    assert code == 0
    assert out.splitlines() == ["w0 w1 w2 "] * 3
    assert err.count("TTFT") == 3
    said = [[m["content"] for m in body["messages"]] for body in live.bodies]
    assert said == [["hello"], ["hello", "w0 w1 w2 ", "again"], ["new"]]


def test_a_failed_turn_of_a_chat_is_explained_and_the_chat_goes_on(capstan, live, monkeypatch):
    live.behaviour = lambda number: "503" if number == 0 else "complete"
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    code, out, err = capstan("chat", "--url", live.base, "--max-tokens", "2")
    assert code == 0
    assert "503" in err
    assert out.split() == ["w0", "w1"]
    assert [m["content"] for m in live.bodies[1]["messages"]] == ["two"]


def test_a_chat_without_a_server_says_how_to_start_one(capstan):
    code, _, err = capstan("chat", "--url", "http://127.0.0.1:1")
    assert code == 4
    assert "capstan up" in err
