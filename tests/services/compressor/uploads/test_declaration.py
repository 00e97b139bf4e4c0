"""What may be declared."""

import pytest

from deltaserve.errors import FormatError, InvalidArgumentError
from services.compressor.uploads.declaration import DeclaredFile, DeclaredTensor, declare

SHA = "0" * 64
TENSORS = (DeclaredTensor("w", "F32", (2, 2)),)


def files(*names: str) -> tuple[DeclaredFile, ...]:
    return tuple(DeclaredFile(name, 1, SHA) for name in names)


def test_a_checkpoint_and_a_packed_delta() -> None:
    checkpoint = declare("u", files("model.safetensors", "config.json"), b'{"a": 1}', TENSORS)
    assert not checkpoint.packed
    assert checkpoint.config == {"a": 1}
    assert checkpoint.bytes == 2
    assert declare("u", files("manifest.json", "delta.safetensors"), b"", ()).packed


def test_an_adapter() -> None:
    adapter = declare("u", files("adapter_model.safetensors", "adapter_config.json"), b'{"r": 4}', TENSORS)
    assert (adapter.adapter, adapter.packed, adapter.config) == (True, False, {"r": 4})
    assert adapter.config_file == "adapter_config.json"
    assert not declare("u", files("model.safetensors", "config.json"), b"{}", TENSORS).adapter
    with pytest.raises(FormatError, match=r"adapter_config\.json is not JSON"):
        declare("u", files("adapter_model.safetensors", "adapter_config.json"), b"{", TENSORS)


@pytest.mark.parametrize(
    "name", ["../evil", "a/b.safetensors", "/etc/passwd", "", ".hidden", "a\\b", "a\0b", "..", "x" * 200, "ü.json"]
)
def test_paths_that_lead_elsewhere(name: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        declare("u", files("model.safetensors", "config.json", name), b"{}", TENSORS)
    assert refused.value.field == "files[2].path"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "x.PKL", "x.ckpt", "x.pth"])
def test_pickles_by_name(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"onvert .*safetensors"):
        declare("u", files("model.safetensors", "config.json", name), b"{}", TENSORS)


@pytest.mark.parametrize("upload_id", ["", "../u", "A", "a/b", "a..b", "x" * 64])
def test_ids(upload_id: str) -> None:
    with pytest.raises(InvalidArgumentError, match="upload_id"):
        declare(upload_id, files("model.safetensors", "config.json"), b"{}", TENSORS)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "0 files"),
        (("config.json",), "expected config.json and"),
        (("model.safetensors",), "expected config.json and"),
        (("model.safetensors", "config.json", "CONFIG.json"), "declared twice"),
        (("adapter_config.json",), "without adapter_model.safetensors"),
        (("adapter_model.safetensors",), "without its adapter_config.json"),
        (("adapter_config.json", "adapter_model.safetensors", "model.safetensors"), "expected one of them"),
    ],
)
def test_sets_of_files(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        declare("u", files(*names), b"{}", TENSORS)


@pytest.mark.parametrize("config", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b" " * (2 << 20)])
def test_configs(config: bytes) -> None:
    with pytest.raises(FormatError):
        declare("u", files("model.safetensors", "config.json"), config, TENSORS)


def test_sizes_hashes_and_tensors() -> None:
    good = files("config.json")
    with pytest.raises(InvalidArgumentError, match="at most"):
        declare("u", (*good, DeclaredFile("m.safetensors", 1 << 60, SHA)), b"{}", TENSORS)
    with pytest.raises(InvalidArgumentError, match="64 lower-case hex"):
        declare("u", (*good, DeclaredFile("m.safetensors", 1, "A" * 64)), b"{}", TENSORS)
    with pytest.raises(InvalidArgumentError, match="without its tensors"):
        declare("u", files("m.safetensors", "config.json"), b"{}", ())
