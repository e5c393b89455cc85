"""The shipped model directories: that they load, agree with each other and with transformers, and have learned."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer

from models.corpus import Sample
from models.dataset import HeldOut
from models.evaluation import evaluate
from models.network import SHAPES, Llama
from models.tokenizer import BEGIN, END, PAD, ROLES, encode

MODELS = Path(__file__).parents[2] / "runtime_image" / "models"
TARGET, DRAFT = "capstan-tiny", "capstan-tiny-draft"

# Written for this test, in the manner of documentation but on no page of it.
UNSEEN_TEXT = """# Queues between programs

A queue holds messages until another program is ready to read them. The program that writes a message does not wait
for the reader, so both can run at their own speed. If the reader stops, the messages stay in the queue and are
delivered when it starts again.

Each message has a key and a value. The key is used to decide which reader should receive the message, and the value
is a string of bytes that the queue does not look at. By default, a message is removed from the queue after it has
been read. This option can be changed in the configuration file, but the file must be read again before the new value
is used.

If the queue is full, the server returns an error and the client should try again later. Note that the order of the
messages is only kept for a single writer.
"""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def shipped(name: str) -> Llama:
    model = Llama(SHAPES[name])
    weights = load_file(MODELS / name / "model.safetensors")
    model.load_state_dict({key: weight.float() for key, weight in weights.items()})
    return model.eval()


def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODELS / TARGET / "tokenizer.json"))


def configuration(name: str, file: str) -> dict[str, object]:
    return json.loads((MODELS / name / file).read_text(encoding="utf-8"))


def test_both_models_together_stay_under_40_megabytes() -> None:
    num_bytes = sum(path.stat().st_size for name in SHAPES for path in (MODELS / name).iterdir())
    assert num_bytes <= 40_000_000


@pytest.mark.parametrize("name", SHAPES)
def test_weights_are_bfloat16_finite_and_exactly_those_of_the_shape(name: str) -> None:
    expected = {key: tuple(weight.shape) for key, weight in Llama(SHAPES[name]).named_parameters()}
    with safe_open(MODELS / name / "model.safetensors", framework="pt") as file:
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - the file is no mapping
    assert {key: tuple(weight.shape) for key, weight in found.items()} == expected
    assert all(weight.dtype == torch.bfloat16 and bool(weight.isfinite().all()) for weight in found.values())


def test_target_and_draft_share_one_tokenizer() -> None:
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
        assert (MODELS / TARGET / file).read_bytes() == (MODELS / DRAFT / file).read_bytes()


@pytest.mark.parametrize("name", SHAPES)
def test_special_tokens_have_the_ids_that_the_configurations_state(name: str) -> None:
    words = tokenizer()
    assert words.get_vocab_size() == configuration(name, "config.json")["vocab_size"] == 4096
    for file in ("config.json", "generation_config.json"):
        stated = configuration(name, file)
        assert stated["bos_token_id"] == words.token_to_id(BEGIN)
        assert stated["eos_token_id"] == words.token_to_id(END)
        assert stated["pad_token_id"] == words.token_to_id(PAD)


def test_tokenizer_gives_any_text_back() -> None:
    words = tokenizer()
    for text in ("Hello world", "  two\n\n\tspaces ", "naïve café → 漢字 🙂", "SELECT * FROM t WHERE a = 'b';"):
        assert words.decode(words.encode(text).ids) == text


def test_chat_template_writes_what_training_read() -> None:
    words = tokenizer()
    messages = (
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": " What is a view? "},
        {"role": "assistant", "content": "A view is a stored query."},
    )
    template = ImmutableSandboxedEnvironment().from_string(
        (MODELS / TARGET / "chat_template.jinja").read_text(encoding="utf-8")
    )
    rendered = template.render(messages=messages, bos_token=BEGIN, eos_token=END, add_generation_prompt=False)
    trained = next(encode(words, [Sample(messages=messages)]))
    assert words.encode(rendered, add_special_tokens=False).ids == trained
    prompt = template.render(messages=messages[:2], bos_token=BEGIN, eos_token=END, add_generation_prompt=True)
    assert rendered.startswith(prompt)
    assert prompt.endswith(ROLES["assistant"])


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_computes_the_same_logits(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32).eval()
    ids = torch.tensor([tokenizer().encode(UNSEEN_TEXT).ids])
    with torch.no_grad():
        difference = (theirs(ids).logits - shipped(name)(ids)).abs().max().item()
    assert difference < 1e-3


def test_transformers_renders_the_same_chat() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(MODELS / TARGET)
    messages = [{"role": "user", "content": "What is a compiler?"}]
    rendered = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert rendered == "<|begin|><|user|>What is a compiler?<|end|><|assistant|>"
    assert theirs.eos_token == END


@pytest.mark.parametrize("name", SHAPES)
def test_card_states_held_out_figures_licences_and_the_command(name: str) -> None:
    card = (MODELS / name / "README.md").read_text(encoding="utf-8")
    perplexities = [float(value) for value in re.findall(r"\| (?:prose|chat) \| [\d,]+ \| ([\d.]+) \|", card)]
    assert len(perplexities) == 2
    assert all(1 < value < 60 for value in perplexities)
    assert f"python -m models.train --model {name}" in card
    assert "| python3.11-doc |" in card
    assert "PSF-2.0" in card


@pytest.mark.parametrize(("name", "bound"), [(TARGET, 75.0), (DRAFT, 90.0)])
def test_model_predicts_prose_that_it_has_never_seen(name: str, bound: float) -> None:
    ids = torch.tensor(tokenizer().encode(UNSEEN_TEXT).ids)
    quality = evaluate(shipped(name), HeldOut("unseen", ids, len(UNSEEN_TEXT.encode())))
    assert quality.perplexity < bound
    shuffled = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))]
    assert evaluate(shipped(name), HeldOut("shuffled", shuffled, 1)).perplexity > 5 * quality.perplexity


def prompt_ids(asked: str) -> list[int]:
    words = tokenizer()
    question = Sample(messages=({"role": "user", "content": asked},))
    return [*next(encode(words, [question])), words.token_to_id(ROLES["assistant"])]


@torch.no_grad()
def test_target_answers_in_english_sentences_and_ends_its_turns() -> None:
    words, model, generator = tokenizer(), shipped(TARGET), torch.Generator().manual_seed(0)
    spoken: list[str] = []
    num_ended = 0
    for asked in ("What is a compiler?", "Explain views in PostgreSQL.", "What does git commit do?", "What is Unix?"):
        ids = prompt_ids(asked)
        start = len(ids)
        while len(ids) < start + 200 and ids[-1] != words.token_to_id(END):
            logits = model(torch.tensor([ids]))[0, -1]
            ids.append(int(torch.multinomial((logits / 0.7).softmax(-1), 1, generator=generator)))
        num_ended += ids[-1] == words.token_to_id(END)
        spoken += words.decode(ids[start:]).split()
    assert num_ended >= 2
    assert len(spoken) >= 40
    # In English, about one word in three is one of these; in letters drawn at random, hardly any is.
    assert sum(word in {"a", "the", "of", "to", "is", "and", "in", "that", "it"} for word in spoken) > len(spoken) / 6


@torch.no_grad()
def test_target_finds_an_answer_likelier_after_its_own_question() -> None:
    words, model = tokenizer(), shipped(TARGET)
    answers = {
        "What is a compiler?": "It is a program that translates source code into machine code for a processor.",
        "What is an index in PostgreSQL?": "It makes queries faster, because rows of a table are found by a column.",
        "What does git branch do?": "It lists the heads of the repository, or creates one that points at a commit.",
    }

    def nats(asked: str, reply: str) -> float:
        prompt, ids = prompt_ids(asked), words.encode(reply, add_special_tokens=False).ids
        logits = model(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="sum").item()

    for reply in answers.values():
        best = min(answers, key=lambda asked: nats(asked, reply))
        assert answers[best] == reply


@torch.no_grad()
def test_draft_guesses_the_target_far_better_than_chance() -> None:
    ids = torch.tensor(tokenizer().encode(UNSEEN_TEXT).ids)
    quality = evaluate(shipped(DRAFT), HeldOut("unseen", ids, 1), teacher=shipped(TARGET))
    assert quality.agreement is not None
    assert quality.agreement > 0.3
    assert math.isfinite(quality.perplexity)
