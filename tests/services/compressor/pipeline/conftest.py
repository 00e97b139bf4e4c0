"""Tiny random bases and fine-tunes of all architectures, and runs of the pipeline over them."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaserve.delta.manifest import Manifest
from services.compressor.pipeline.progress import Progress
from services.compressor.pipeline.run import run
from services.compressor.pipeline.spec import Options, Policy, Spec

VOCABULARY = 264  # 256 bytes and 8 special tokens
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 0,
    "bos_token_id": 0,
    "pad_token_id": None,
}


def save_tokenizer(folder: Path) -> None:
    """One token a byte, after special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<eos>", *(f"<s{i}>" for i in range(1, 8)), *alphabet]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(names[:8])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    fast.chat_template = "{% for m in messages %}<s1>{{ m['content'] }}<eos>{% endfor %}"
    fast.save_pretrained(folder)


def make_model(architecture: str = "LlamaForCausalLM", seed: int = 0, **config: Any) -> Any:
    """Returns a random transformers model whose vectors (norms, biases) are random too."""
    import transformers

    model_class = getattr(transformers, architecture)
    merged = {"vocab_size": VOCABULARY, "tie_word_embeddings": True, **SIZES, **config}
    torch.manual_seed(seed)
    model = model_class(model_class.config_class(**merged)).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() == 1:
                tensor.normal_(1.0 if "norm" in name else 0.0, 0.1)
            else:
                tensor.normal_(0.0, 0.1)  # enough for logits that are far from flat
    return model


def tune(model: Any, seed: int = 1, size: float = 0.02) -> None:
    """Adds noise to every parameter of a model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, tensor in sorted(model.named_parameters()):
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=size)


def save(model: Any, folder: Path) -> Path:
    """Saves a model with a tokenizer; several shards, bfloat16 as fine-tunes usually are."""
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="60KB")
    model.float()
    save_tokenizer(folder)
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base and a fine-tune of it."""
    return make_pair(tmp_path)


def make_pair(folder: Path, architecture: str = "LlamaForCausalLM", **config: Any) -> tuple[Path, Path]:
    """Saves a base and a fine-tune of it, and returns their folders."""
    model = make_model(architecture, **config)
    base = save(model, folder / "base")
    tune(model)
    return base, save(model, folder / "tuned")


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def compress(tmp_path: Path) -> Callable[..., Manifest]:
    """Runs the pipeline here: compress((base, tuned), codec="int4", policy={}, ...)."""

    def compress(pair: tuple[Path, Path], work: str = "work", **changes: Any) -> Manifest:
        return run(make_spec(pair, tmp_path / work, **changes), Progress(io.StringIO()))

    return compress


def make_spec(pair: tuple[Path, Path], work: Path, **changes: Any) -> Spec:
    """Returns a spec of a small run; `codec`, `policy` and other options by name."""
    work.mkdir(parents=True, exist_ok=True)
    options = {
        "codec": "int4", "group_size": 16, "calibration_samples": 8, "calibration_tokens": 48,
        **{key: changes.pop(key) for key in list(changes) if key in Options.__struct_fields__},
    }  # fmt: skip
    policy = Policy(**changes.pop("policy", {}))
    return Spec(base=pair[0], tuned=pair[1], work=work, options=Options(**options), policy=policy, **changes)
