"""Prompts become the ids that `transformers` makes of them."""

import json
import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from deltaserve.errors import FormatError, InvalidArgumentError, PreconditionError, UnsupportedModelError
from services.worker.front.tokenizer import Encoding, PromptTokenizer, require_tokenizer

ZOO = Path(os.environ.get("DELTASERVE_ZOO", Path(__file__).parents[5] / "shared" / "zoo"))
TEXTS = ["", "hello world", "  two  spaces", "日本語 😀", "<|end|>inside<|end|>", "the the the"]


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".safetensors"}


def prompt_tokenizer(folder: Path) -> PromptTokenizer:
    files = read(folder)
    return PromptTokenizer(Encoding(files["tokenizer.json"]), files)


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_same_ids_as_transformers(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    encoding: Encoding = request.getfixturevalue(kind)
    (tmp_path / "tokenizer.json").write_text(encoding._tokenizer.to_str())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    oracle, ours = AutoTokenizer.from_pretrained(tmp_path), prompt_tokenizer(tmp_path)
    for text in TEXTS:
        for add in (True, False):
            assert ours.encode(text, add) == oracle(text, add_special_tokens=add)["input_ids"]


@pytest.mark.zoo
@pytest.mark.parametrize("model", ["base", "g2p", "conj_fr", "section"])
def test_same_ids_as_transformers_on_the_zoo(model: str) -> None:
    if not (ZOO / model).is_dir():
        pytest.skip(f"no model zoo at {ZOO}; set DELTASERVE_ZOO")
    oracle, ours = AutoTokenizer.from_pretrained(ZOO / model), prompt_tokenizer(ZOO / model)
    chat = [{"role": "user", "content": "m a c a b r e"}]
    assert ours.encode_chat(chat, True) == oracle.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert ours.eos_token_id == oracle.eos_token_id
    for text in TEXTS:
        assert ours.encode(text, True) == oracle(text)["input_ids"]


def test_pieces_concatenate_to_the_text(gpt: Encoding, llama: Encoding) -> None:
    for encoding in (gpt, llama):
        ids = encoding.encode("the naïve 日本 fox", add_special_tokens=False)
        pieces = PromptTokenizer(encoding, {}).pieces(ids)
        assert len(pieces) == len(ids)
        assert "".join(pieces) == "the naïve 日本 fox"
    assert PromptTokenizer(gpt, {}).pieces([]) == []


def test_truncation_and_padding_of_training_do_not_apply(gpt: Encoding) -> None:
    saved = Tokenizer.from_str(gpt._tokenizer.to_str())
    saved.enable_truncation(2)
    saved.enable_padding(length=8)
    ids = Encoding(saved.to_str().encode()).encode("the quick brown fox", add_special_tokens=True)
    assert ids == gpt.encode("the quick brown fox", add_special_tokens=True)


def test_templates_are_found_where_models_keep_them(gpt: Encoding) -> None:
    chat = [{"role": "user", "content": "x"}]
    in_file = PromptTokenizer(gpt, {"chat_template.jinja": b"<|user|>{{ messages[0].content }}"})
    assert gpt.decode(in_file.encode_chat(chat, True)) == "<|user|>x"
    config = {"chat_template": "{{ eos_token }}", "eos_token": {"content": "<|end|>", "lstrip": False}}
    in_config = PromptTokenizer(gpt, {"tokenizer_config.json": json.dumps(config).encode()})
    assert gpt.decode(in_config.encode_chat(chat, True)) == "<|end|>"
    assert in_config.eos_token_id == gpt.encode("<|end|>", False)[0]
    named = {"chat_template": [{"name": "tool", "template": "no"}, {"name": "default", "template": "fox"}]}
    by_name = PromptTokenizer(gpt, {"tokenizer_config.json": json.dumps(named).encode()})
    assert gpt.decode(by_name.encode_chat(chat, True)) == "fox"


def test_no_template_no_chat(gpt: Encoding) -> None:
    with pytest.raises(PreconditionError, match="no chat template"):
        PromptTokenizer(gpt, {}).encode_chat([{"role": "user", "content": "x"}], True)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b'{"model": null}', b"[" * 100_000])
def test_malformed_tokenizers_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"tokenizer\.json is malformed"):
        Encoding(data)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_malformed_configs_are_refused(data: bytes, gpt: Encoding) -> None:
    with pytest.raises(FormatError, match=r"tokenizer_config\.json"):
        PromptTokenizer(gpt, {"tokenizer_config.json": data})


def test_a_missing_tokenizer_says_how_to_make_one() -> None:
    with pytest.raises(UnsupportedModelError, match="save_pretrained"):
        require_tokenizer({"tokenizer.model": b""}, "m@1")


def test_half_of_a_surrogate_pair_is_no_text(gpt: Encoding) -> None:
    with pytest.raises(InvalidArgumentError, match="not Unicode"):
        _ = PromptTokenizer(gpt, {"tokenizer_config.json": b'{"eos_token": "\\ud800"}'}).eos_token_id
