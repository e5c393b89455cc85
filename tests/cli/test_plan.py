"""`capstan plan`: the largest batch is the largest, by the engine's own formula; it takes neither weights nor torch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from capstan_api.engine_args import Quantization
from capstan_api.footprint import Demand, MemoryFigures
from capstan_cli import main, plan

LLAMA_3_8B = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B))
    return tmp_path


def budget(mebibytes: int, *, kind: str = "cuda", context: int = 4096, tokens: int = 2048) -> plan.Budget:
    return plan.Budget(kind, mebibytes << 20, context, tokens, block_size=16)


MODELS = st.builds(
    MemoryFigures,
    weights=st.integers(0, 1 << 36),
    position=st.integers(0, 4096),
    kv_token=st.integers(1, 1 << 20),
    kv_copied=st.sampled_from([0, 1, 32]),
    step_token=st.integers(0, 1 << 20),
    step_position=st.integers(0, 1 << 16),
    step_sequence=st.integers(0, 1 << 22),
    loading=st.integers(0, 1 << 33),
    processes=st.integers(0, 1 << 31),
    max_positions=st.just(8192),
)
"""Also such as nobody has made."""


@given(
    figures=MODELS,
    mebibytes=st.integers(1, 200_000),
    context=st.integers(1, 8192),
    tokens=st.integers(1, 16_384),
)
def test_the_largest_batch_fits_and_one_more_does_not(
    figures: MemoryFigures, mebibytes: int, context: int, tokens: int
) -> None:
    there = budget(mebibytes, context=context, tokens=tokens)
    num = plan.largest_batch(figures, there)

    def total(num: int) -> int:
        return figures.footprint(plan.demand(figures, there, num)).total

    assert num == 0 or total(num) <= there.memory_bytes
    assert num == plan.MOST_SEQUENCES or total(num + 1) > there.memory_bytes


@given(
    figures=MODELS,
    mebibytes=st.integers(1, 200_000),
    context=st.integers(1, 8192),
    tokens=st.integers(1, 16_384),
)
def test_what_is_advised_fits_as_it_stands(figures: MemoryFigures, mebibytes: int, context: int, tokens: int) -> None:
    """Whoever writes the sentence's numbers into a resource is not told that they are too large."""
    there = budget(mebibytes, kind="cpu", context=context, tokens=tokens)
    num = plan.largest_batch(figures, there)
    assume(num)
    need = figures.footprint(plan.demand(figures, there, num))
    row = plan.Row("bfloat16", Quantization.NONE, figures.kv_token, num, need)
    (sentence,) = plan.advice([row], there)
    memory, sequences, batched_tokens, kv_cache, length = map(int, re.findall(r"\b(?:max|memory)\w+ (\d+)", sentence))
    asked = Demand(kv_cache << 20, 16, length, batched_tokens, sequences)
    assert (length, sequences) == (context, num)
    assert memory <= mebibytes
    assert figures.shortfall(asked, memory << 20) is None
    assert figures.num_blocks(asked) >= num * -(-context // 16)


def test_the_figures_of_a_known_model(model: Path) -> None:
    """Llama 3 8B in bfloat16: 8.03 billion parameters, 2 · 32 · 8 · 128 · 2 bytes of KV per token."""
    (row,) = plan.rows(model, "Auto", None, budget(81_559))
    tables = 4096 * 2 * 128 * 2
    assert row.footprint.weights == 2 * 8_030_261_248 + tables
    assert row.kv_token_bytes == 131_072
    assert row.footprint.kv_cache == row.num_sequences * 4096 * 131_072
    assert row.num_sequences == 126


def test_bfloat16_takes_12_bits_where_the_processor_decodes_them(model: Path) -> None:
    """All but the embedding and the norms of Llama 3 8B, and what processors without AVX-512 need is said."""
    cpu = budget(65_536, kind="cpu")
    (row,) = plan.rows(model, "Auto", "None", cpu)
    vectors = (65 * 4096 + 128_256 * 4096) * 2
    tables = 4096 * 2 * 128 * 2
    assert row.footprint.weights == (2 * 8_030_261_248 - vectors) * 3 // 4 + vectors + tables
    assert row.footprint.weights + row.uncoded_bytes == 2 * 8_030_261_248 + tables
    assert "On a processor without AVX-512 its weights take 3,579 MiB more." in list(plan.advice([row], cpu))
    (on_gpu,) = plan.rows(model, "Auto", "None", budget(81_559))
    assert on_gpu.uncoded_bytes == 0


def test_fewer_bits_leave_more_room(model: Path) -> None:
    found = {row.quantization: row for row in plan.rows(model, "Auto", None, budget(32_768, kind="cpu"))}
    assert found["Int4Group64"].footprint.weights < found["Int8"].footprint.weights < found["None"].footprint.weights
    assert found["Int4Group64"].num_sequences > found["Int8"].num_sequences > found["None"].num_sequences > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--accelerator", "abacus"], "--accelerator abacus is not known; give its --memory-mebibytes too"),
        (["--precision", "Float8"], "--precision Float8 is not known; there are Auto, Float32, BFloat16"),
        (["--quantization", "Int3"], "--quantization Int3 is not known; there are None, Int8"),
        (["--quantization", "Int8", "--accelerator", "h200"], "runs on a CPU and in BFloat16 only"),
        (["--quantization", "Int8", "--precision", "Float32"], "runs on a CPU and in BFloat16 only"),
        (["--context", "9000"], "--context 9000 exceeds the 8192 positions"),
    ],
)
def test_a_wrong_option_is_one_sentence(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["capstan", "plan", str(model), *arguments])
    with pytest.raises(SystemExit, match="2"):
        main.main()
    assert said in capsys.readouterr().err


def test_a_model_that_does_not_fit_is_told_what_it_would_take(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["capstan", "plan", str(model), "--accelerator", "l4", "--memory-mebibytes", "9000"]
    )
    with pytest.raises(SystemExit, match="0"):
        main.main()
    assert "Not one sequence fits" in capsys.readouterr().out


def test_planning_never_imports_torch(model: Path) -> None:
    probe = (
        "import sys\n"
        f"sys.argv = ['capstan', 'plan', {str(model)!r}, '--accelerator', 'h200']\n"
        "from capstan_cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.exit(', '.join({'torch', 'numpy', 'safetensors'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "largest batch" in done.stdout
