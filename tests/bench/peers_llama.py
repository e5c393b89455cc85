"""llama.cpp as a peer: a process in an environment of its own that answers one line of JSON with another.

    python peers_llama.py convert CHECKPOINT GGUF TYPE        write a GGUF file (BF16, Q8_0 or Q4_0)
    python peers_llama.py serve GGUF THREADS SEQUENCES TOKENS CLOCK   then {"prompts": [[…]], "num_tokens": n} a line

CLOCK is a function of the module `time`.

Imports nothing of Capstan, which is not there. Greedy; the whole batch decodes together, as `llama-batched-bench` does.
"""

import ctypes
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import llama_cpp.llama_cpp as llama
import numpy as np

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OTHERS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_TYPES = {"Q8_0": llama.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_0": llama.LLAMA_FTYPE_MOSTLY_Q4_0}


def convert(checkpoint: Path, target: Path, kind: str) -> None:
    """The bfloat16 safetensors of a Llama as GGUF; the rounded kinds by llama.cpp's own quantizer, from that."""
    plain = target.with_name(target.name.replace(kind, "BF16"))
    if not plain.exists():
        _write(checkpoint, plain)
    if kind != "BF16":
        params = llama.llama_model_quantize_default_params()
        params.ftype = _TYPES[kind]
        if llama.llama_model_quantize(str(plain).encode(), str(target).encode(), ctypes.byref(params)):
            sys.exit(f"llama.cpp cannot quantize {plain}")


def _write(checkpoint: Path, target: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(llama.LLAMA_FTYPE_MOSTLY_BF16)
    with (checkpoint / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        start = file.tell()
    for name, facts in header.items():
        if name == "__metadata__":
            continue
        first, last = facts["data_offsets"]
        raw = np.memmap(checkpoint / "model.safetensors", np.uint16, "r", start + first, ((last - first) // 2,))
        values = raw.reshape(facts["shape"])
        if ".q_proj" in name or ".k_proj" in name:
            values = _paired(values, heads if ".q_proj" in name else kv_heads)
        if values.ndim == 1:
            widened = (values.astype(np.uint32) << 16).view(np.float32)
            writer.add_tensor(_name(name), widened)
        else:
            raw_bytes = np.ascontiguousarray(values).view(np.uint8)
            writer.add_tensor(_name(name), raw_bytes, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _name(name: str) -> str:
    if name in _OTHERS:
        return _OTHERS[name]
    index, rest = name.removeprefix("model.layers.").split(".", 1)
    return f"blk.{index}.{_NAMES[rest.removesuffix('.weight')]}.weight"


def _paired(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF's Llama turns neighbouring dimensions together, a checkpoint's those that are half a head apart."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


class Model:
    """A loaded model with room for `sequences` of `tokens` each."""

    def __init__(self, path: str, threads: int, sequences: int, tokens: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        llama.llama_backend_init()
        self._model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_seq_max = sequences * tokens, sequences
        params.n_threads = params.n_threads_batch = threads
        params.n_batch = 2048
        self._context = llama.llama_init_from_model(self._model, params)
        self._vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        self._batch = llama.llama_batch_init(params.n_batch, 0, 1)
        self._most = params.n_batch

    def run(self, prompts: list[list[int]], num_tokens: int) -> dict[str, object]:
        """Greedy tokens of each prompt, and the seconds until all had their first and until all had their last."""
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)
        started = self._clock()
        tokens = [[token] for token in self._prefill(prompts)]
        first = self._clock()
        for step in range(num_tokens - 1):
            new = [
                (row[-1], len(prompt) + step, n, True)
                for n, (row, prompt) in enumerate(zip(tokens, prompts, strict=True))
            ]
            self._decode(new)
            for index, row in enumerate(tokens):
                row.append(self._choice(index))
        return {"prefill_s": first - started, "decode_s": self._clock() - first, "tokens": tokens}

    def _prefill(self, prompts: list[list[int]]) -> list[int]:
        entries = [
            (token, position, number, position + 1 == len(prompt))
            for number, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        chosen = []
        for offset in range(0, len(entries), self._most):
            part = entries[offset : offset + self._most]
            self._decode(part)
            chosen += [self._choice(index) for index, (*_, wanted) in enumerate(part) if wanted]
        return chosen

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> None:
        self._batch.n_tokens = len(entries)
        for index, (token, position, sequence, wanted) in enumerate(entries):
            self._batch.token[index] = token
            self._batch.pos[index] = position
            self._batch.n_seq_id[index] = 1
            self._batch.seq_id[index][0] = sequence
            self._batch.logits[index] = wanted
        if llama.llama_decode(self._context, self._batch):
            sys.exit("llama_decode failed")

    def _choice(self, index: int) -> int:
        logits = llama.llama_get_logits_ith(self._context, index)
        return int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        convert(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    else:
        model = Model(sys.argv[2], *map(int, sys.argv[3:6]), getattr(time, sys.argv[6]))
        print("{}", flush=True)
        for line in sys.stdin:
            print(json.dumps(model.run(**json.loads(line))), flush=True)
