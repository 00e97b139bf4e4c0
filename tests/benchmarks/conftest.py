"""A tiny random base and a fine-tune of it, with labelled rows, in the layout of a zoo."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

LETTERS = "abcdefgh"
CONFIG: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 0,
    "bos_token_id": 0,
    "pad_token_id": None,
    "tie_word_embeddings": True,
}


def save_tokenizer(folder: Path) -> None:
    """One token a byte, after special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<eos>", *(f"<s{i}>" for i in range(1, 8)), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(names[:8])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)


def save_rows(path: Path, count: int, random: torch.Generator) -> None:
    """Labelled rows: three letters, and the same in capitals as the answer."""
    rows = []
    for _ in range(count):
        word = "".join(LETTERS[i] for i in torch.randint(len(LETTERS), (3,), generator=random))
        rows.append({"prompt": f"<s1>{word}<s2>", "targets": [word.upper()]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_zoo(folder: Path, seed: int = 0) -> Path:
    """Saves base/ and copy/, whose every parameter is changed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    random = torch.Generator().manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()
    with torch.no_grad():
        for name, tensor in sorted(model.named_parameters()):
            mean = 1.0 if name.endswith("norm.weight") else 0.0
            tensor.copy_(mean + 0.1 * torch.randn(tensor.shape, generator=random))
    for name in ("base", "copy"):
        model.to(torch.bfloat16).save_pretrained(folder / name)
        save_tokenizer(folder / name)
        model.float()
        with torch.no_grad():
            for _, tensor in sorted(model.named_parameters()):
                tensor.add_(torch.randn(tensor.shape, generator=random), alpha=0.02)
    for name, count in (("train", 40), ("test", 12)):
        save_rows(folder / "copy" / f"{name}.jsonl", count, random)
    return folder


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    return save_zoo(tmp_path / "zoo")
