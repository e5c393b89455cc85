"""`capstan simulate` as a person meets it: one command from a trace and a resource to a table, JSON and a picture."""

import json
from collections import Counter

import pytest

from capstan_api.access import Access
from capstan_cli.errors import InputError
from capstan_cli.simulate import changed
from capstan_sim.what_if import WhatIf
from command_line import called

SPEC = """
apiVersion: capstan.dev/v1alpha1
kind: InferenceDeployment
metadata: {name: quick}
spec:
  model: {source: {uri: "file:///models/any"}}
  engine: {batching: {maxSequences: 64, maxBatchedTokens: 2048}}
  variants: [{name: gpu, costPerHour: "12.5"}]
  slos:
    - name: chat
      ttft: {thresholdMilliseconds: 1000}
      tpot: {thresholdMilliseconds: 60}
      objectivePercent: "99"
    - name: batch
      ttft: {thresholdMilliseconds: 20000}
  scaling: {minReplicas: 1, maxReplicas: 4}
"""


@pytest.fixture
def simulate(monkeypatch, capsys, tmp_path):
    """Run `capstan simulate` on a small trace; gives (exit code, stdout, stderr)."""
    (tmp_path / "spec.yaml").write_text(SPEC)
    rows = "".join(f"{i * 0.4:.1f},{100 + 37 * i % 900},{1 + 13 * i % 80},{i % 9}\n" for i in range(400))
    (tmp_path / "trace.csv").write_text("t,prompt,output,session\n" + rows)
    monkeypatch.chdir(tmp_path)
    # Wide enough for a table that is read by a test.
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments: str):
        usual = ["--trace", "trace.csv", "--spec", "spec.yaml"]
        return called(monkeypatch, capsys, "simulate", *usual, *arguments)

    return call


def test_the_report_has_the_figures_in_all_and_per_class(simulate, tmp_path):
    code, out, _ = simulate("--json", "out/report.json", "--slo-class-mix", "chat=3,batch=1")
    assert code == 0
    assert "400 requests in 160 s; steps of llama3-8b-h100, 400,000 tokens of KV; 1 of 4 replicas" in out
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["policy"] == "capstan"
    for key in ("attainment_percent", "gpu_hours", "scale_events", "flips", "limit_changes"):
        assert isinstance(report[key], int | float)
    assert report["classes"].keys() == {"chat", "batch"}
    assert sum(figures["requests"] for figures in report["classes"].values()) == report["requests"] == 400
    assert report["cost"] == pytest.approx(12.5 * report["gpu_hours"], abs=0.01)


def test_the_same_options_give_the_same_bytes(simulate, tmp_path):
    for name in ("a", "b"):
        simulate("--clones", "2", "--event", "fail@60", "--json", f"{name}.json", "--plot", f"{name}.png")
    simulate("--clones", "2", "--event", "fail@60", "--json", "c.json", "--seed", "1")
    read = {name: (tmp_path / name).read_bytes() for name in ("a.json", "b.json", "c.json", "a.png", "b.png")}
    assert read["a.json"] == read["b.json"] != read["c.json"]
    assert read["a.png"] == read["b.png"]
    assert read["a.png"].startswith(b"\x89PNG")


def test_policies_are_compared_on_the_same_requests(simulate, tmp_path):
    code, out, _ = simulate("--compare", "capstan,hpa_queue:0.6,static:2", "--json", "o.json", "--cold-start", "30")
    assert code == 0
    policies = json.loads((tmp_path / "o.json").read_text())["policies"]
    assert list(policies) == ["capstan", "hpa_queue:0.6", "static:2"]
    assert {report["requests"] for report in policies.values()} == {400}
    assert all(name in out for name in policies)
    # From the first second to the last arrival, two replicas of one GPU.
    assert policies["static:2"]["gpu_hours"] == pytest.approx(2 * 159.6 / 3600, abs=1e-4)
    assert policies["static:2"]["scale_events"] == 0


def test_limits_that_stay_can_be_chosen(simulate, tmp_path):
    simulate("--compare", "capstan_replicas_only,capstan_replicas_only:64", "--json", "o.json")
    usual, small = json.loads((tmp_path / "o.json").read_text())["policies"].values()
    assert usual["limit_changes"] == small["limit_changes"] == 0
    assert small["classes"]["chat"]["ttft_ms"]["p50"] > usual["classes"]["chat"]["ttft_ms"]["p50"]


def test_the_resource_can_be_changed_on_the_way(simulate, tmp_path):
    simulate("--set", "scaling.minReplicas=3", "--set", "slos.chat.ttft.thresholdMilliseconds=1", "--json", "o.json")
    report = json.loads((tmp_path / "o.json").read_text())
    assert report["targets"][0]["replicas"] == 3
    assert report["classes"]["chat"]["attainment_percent"] == 0


def test_the_window_the_cap_and_the_cold_start_hold(simulate, tmp_path):
    simulate(
        "--window",
        "40:80",
        "--max-prompt",
        "500",
        "--initial-replicas",
        "0",
        "--cold-start",
        "25",
        "--json",
        "o.json",
        "--policy",
        "static:1",
    )
    rows = [line.split(",") for line in (tmp_path / "trace.csv").read_text().splitlines()[1:]]
    kept = [row for row in rows if 40 <= float(row[0]) < 80 and int(row[1]) <= 500]
    report = json.loads((tmp_path / "o.json").read_text())
    assert report["requests"] == len(kept)


def test_the_real_scheduler_gives_nearly_the_same(simulate, tmp_path):
    simulate("--policy", "static:1", "--json", "fast.json")
    simulate("--policy", "static:1", "--json", "exact.json", "--exact")
    fast, exact = (json.loads((tmp_path / name).read_text())["classes"]["chat"] for name in ("fast.json", "exact.json"))
    for kind in ("ttft_ms", "tpot_ms"):
        assert fast[kind] == pytest.approx(exact[kind], rel=1e-6)


def test_prefix_hits_shorten_prefill(simulate, tmp_path):
    simulate("--policy", "static:1", "--json", "cold.json")
    _, out, _ = simulate("--policy", "static:1", "--json", "warm.json", "--prefix-hits")
    assert "% of their prompt tokens cached" in " ".join(out.split())
    cold, warm = (json.loads((tmp_path / name).read_text())["classes"]["chat"] for name in ("cold.json", "warm.json"))
    assert warm["ttft_ms"]["p50"] < cold["ttft_ms"]["p50"]


def test_a_step_model_can_be_a_file(simulate, tmp_path):
    names = ("base_s", "prefill_token_s", "sequence_s", "context_token_s", "attention_pair_s")
    model = dict.fromkeys(names, 0.0) | {"base_s": 0.5, "kv_tokens": 50_000, "num_gpus": 2}
    (tmp_path / "slow.json").write_text(json.dumps(model))
    simulate("--step-model", "slow.json", "--json", "o.json", "--policy", "static:1")
    assert json.loads((tmp_path / "o.json").read_text())["classes"]["chat"]["tpot_ms"]["p50"] == pytest.approx(500)


def test_steps_are_those_that_the_resource_declares(simulate, tmp_path):
    cost = "spec.variants.0.stepTime"
    declared = {"baseNanoseconds": 500_000_000, "prefillTokenNanoseconds": 1, "sequenceNanoseconds": 0}
    changes = declared | {"contextTokenPicoseconds": 0, "attentionPairPicoseconds": 0}
    arguments = [word for name, value in changes.items() for word in ("--set", f"{cost}.{name}={value}")]
    _, out, _ = simulate(*arguments, "--kv-tokens", "50000", "--json", "o.json", "--policy", "static:1")
    assert "steps of the resource's stepTime, 50,000 tokens of KV" in " ".join(out.split())
    told = json.loads((tmp_path / "o.json").read_text())["classes"]["chat"]["tpot_ms"]["p50"]
    assert told == pytest.approx(500, rel=0.01)
    _, _, err = simulate(*arguments, "--policy", "static:1")
    assert "give it kvCacheTokens, or add --kv-tokens" in " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--trace", "gone.csv"], "cannot read the trace gone.csv"),
        (["--spec", "gone.yaml"], "cannot read gone.yaml"),
        (["--step-model", "a100"], "neither built in (llama3-8b-h100, llama3-70b-4xh100) nor a file"),
        (["--policy", "static:99"], "an integer from 1 to 4"),
        (["--compare", "capstan,magic"], "known are"),
        (["--set", "scaling.maxReplicas"], "not PATH=VALUE"),
        (["--set", "scaling.maxReplica=3"], "maxReplicas"),
        (["--set", "slos.bulk.objectivePercent=90"], "no element is called bulk"),
        (["--set", "scaling.minReplicas=9"], "minReplicas must not exceed maxReplicas"),
        (["--event", "fail@soon"], "must be numbers"),
        (["--window", "9"], "not START:STOP"),
        (["--window", "9000:9001"], "no request of the trace arrives"),
        (["--initial-replicas", "5"], "above scaling.maxReplicas 4"),
        (["--slo-class-mix", "vip=1"], "class vip is not declared"),
        (["--prefix-hits", "--exact"], "exclude each other"),
        (["--max-prompt", "1"], "raise the cap"),
        (["--policy", "capstan", "--compare", "static:1"], "which names them all"),
        (["--event", "fail@500"], "the last request comes at 160 s, before it"),
        (["--json", "/dev/null/o.json"], "cannot write /dev/null/o.json"),
        (["--json", "."], "it is a directory"),
        (["--plot", "o.pdf"], "must end in .png"),
        (["--policy", "capstan_replicas_only:few"], "the token budget after the colon must be an integer"),
        (["--policy", "magic"], "known are capstan, capstan_replicas_only, hpa_queue"),
    ],
)
def test_a_mistake_is_one_clear_sentence(simulate, arguments, words):
    code, _, err = simulate(*arguments)
    assert code == 2
    assert words in " ".join(err.split())


def test_no_policy_is_asked_when_one_of_them_is_unknown(simulate, monkeypatch):
    monkeypatch.setattr(WhatIf, "ask", lambda *_: pytest.fail("asked"))
    code, _, err = simulate("--compare", "capstan,magic")
    assert code == 2
    assert "magic" in err


def test_a_change_makes_what_was_not_there_and_nothing_else():
    document = {"spec": {"slos": [{"name": "chat"}, {"name": "batch"}]}}
    assert changed(document, ["scaling.idle.scaleToZeroAfterSeconds=5", "spec.slos.1.name=bulk"]) == {
        "spec": {"slos": [{"name": "chat"}, {"name": "bulk"}], "scaling": {"idle": {"scaleToZeroAfterSeconds": 5}}}
    }
    with pytest.raises(InputError, match="has no fields"):
        changed({"spec": {"model": "x"}}, ["model.source.uri=y"])


def test_a_request_that_only_a_part_of_a_block_could_hold_is_refused_like_any_other(simulate, tmp_path):
    (tmp_path / "trace.csv").write_text("t,prompt,output\n0,995,5\n")
    assert simulate("--kv-tokens", "1000", "--policy", "static:1")[0] == 0
    code, _, err = simulate("--kv-tokens", "1000", "--policy", "static:1", "--exact")
    assert code == 2
    assert "one replica holds 992" in " ".join(err.split())


def test_all_tables_fit_80_columns(simulate, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    peers = ["capstan", "hpa_concurrency:0.35", "llmd_saturation:0.35"]
    changes = ["--set", "slos.chat.ttft.thresholdMilliseconds=30", "--slo-class-mix", "chat=3,batch=1"]
    code, out, _ = simulate("--compare", ", ".join(peers), *changes, "--kv-tokens", "6000")
    assert code == 0
    assert all(any(line.startswith(name) for line in out.splitlines()) for name in peers)
    assert "…" not in out
    assert "missed by" in out
    in_all = next(line for line in out.splitlines() if line.startswith("policy"))
    assert in_all.split() == ["policy", "attained", "GPU-h", "cost", "events", "flips", "limits", "bad", "min"]


def test_a_resource_that_only_recommends_says_that_nothing_scales(simulate):
    _, out, _ = simulate("--set", "scaling.mode=Shadow", "--set", "scaling.replicas=1")
    assert "add --set scaling.mode=Auto" in " ".join(out.split())
    for arguments in ((), ("--set", "scaling.mode=Shadow", "--set", "scaling.replicas=1", "--policy", "static:1")):
        assert "scaling.mode" not in simulate(*arguments)[1]


def test_a_trace_of_dates_is_told_its_window(simulate, tmp_path):
    (tmp_path / "trace.csv").write_text("t,prompt,output\n1700000000.5,10,5\n1700000060,10,5\n")
    code, _, err = simulate("--policy", "static:1")
    assert code == 2
    assert "add --window 1700000000:1700000061" in " ".join(err.split())
    assert simulate("--policy", "static:1", "--window", "1700000000:1700000061")[0] == 0


def test_every_missed_request_is_in_its_minute_under_its_cause(simulate, tmp_path):
    simulate("--set", "slos.chat.ttft.thresholdMilliseconds=40", "--event", "fail@60", "--json", "o.json")
    report = json.loads((tmp_path / "o.json").read_text())
    by_minute = Counter()
    for row in report["timeline"]:
        by_minute.update(row["violations"])
    assert by_minute == report["violations"] == report["classes"]["chat"]["violations"]
    assert by_minute.total() == round(report["requests"] * (1 - report["attainment_percent"] / 100))


def test_a_gateways_own_log_is_a_trace(simulate, tmp_path):
    lines = [
        f"2026-11-21T10:00:{at:02d} INFO capstan_gateway.access "
        + Access(1.8e9 + at, "batch" if at % 2 else "chat", 100, 20, 0.1, 0.02, "ok").line()
        for at in range(30)
    ]
    (tmp_path / "gateway.log").write_text("\n".join(["something else", *lines]) + "\n")
    code, _, err = simulate("--trace", "gateway.log", "--policy", "static:1", "--json", "o.json")
    assert code == 0, err
    classes = json.loads((tmp_path / "o.json").read_text())["classes"]
    assert {name: figures["requests"] for name, figures in classes.items()} == {"chat": 15, "batch": 15}
