"""Crafted hostile inputs, some hundreds, each for one parser: what fuzzing finds rarely and attackers write first."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MANY = 1 << 20


@dataclass(frozen=True, slots=True)
class Crafted:
    """An input: for which parser, what is wrong with it, its bytes, and whether a parser may take it as harmless."""

    parser: str
    what: str
    data: bytes
    harmless: bool = False


def crafted(seeds: Mapping[str, bytes]) -> list[Crafted]:
    """Returns all crafted inputs; `seeds` is one honest input of each parser that they are made from."""
    makers = (_headers(), _indexes(), _deltas(seeds["delta manifest"]), _configs(seeds["config.json"]), _adapters(),
              _json_files(), _rows(), _templates(), _settings(), _names())  # fmt: skip
    return list(itertools.chain.from_iterable(makers))


def _entry(begin: Any = 0, end: Any = 4, shape: Any = (4,), dtype: Any = "U8", **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end],
            **more}  # fmt: skip


def _file(header: Any, payload: bytes = b"\0" * 4, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + payload


def _headers() -> Iterator[Crafted]:
    name = "safetensors header"
    for size in range(16):
        yield Crafted(name, f"{size} bytes", bytes([1]) * size)
    for length in (0, 1, 1 << 20, 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
        yield Crafted(name, f"a header of {length} bytes", _file({}, length=length))
    numbers = (-1, -(1 << 63), 1 << 63, 1 << 64, 10**30, 0.5, 4.0, True, None, "4", [4], {}, float("nan"))
    for field, value in itertools.product(("begin", "end", "shape", "dtype"), numbers):
        given = [value] if field == "shape" else value
        yield Crafted(name, f"{field} {value!r}", _file({"a": _entry(**{field: given})}))
    for shape in ((1 << 32, 1 << 32), (1 << 62, 4), (2, 3), (0,), (1,) * 9, (1,) * 10_000, (1 << 63, 0)):
        yield Crafted(name, f"shape of {len(shape)} from {shape[0]}", _file({"a": _entry(shape=shape)}))
    for dtype in ("Q4", "", "u8", "F8", "U8\0", "BF16 ", "__class__", "F4", "F6_E2M3", "C64"):
        yield Crafted(name, f"dtype {dtype!r}", _file({"a": _entry(dtype=dtype)}))
    both = {"a": _entry(), "b": _entry()}
    yield Crafted(name, "two tensors of the same bytes", _file(both))
    yield Crafted(name, "a gap", _file({"a": _entry(), "b": _entry(5, 9)}, b"\0" * 9))
    yield Crafted(name, "the same bytes many times", _file({f"t{i}": _entry() for i in range(20_000)}))
    yield Crafted(name, "bytes that nothing names", _file({"a": _entry()}, b"\0" * 5))
    yield Crafted(name, "too few bytes", _file({"a": _entry()}, b"\0" * 3))
    yield Crafted(name, "a name twice", _file(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},' * 2))
    repeated = b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    yield Crafted(name, "an empty tensor twice", _file(b"{" + repeated + b"," + repeated + b"}", b""))
    for key in ("extra", "__metadata__", "dtype "):
        yield Crafted(name, f"a field {key}", _file({"a": _entry(**{key: 1})}))
    for value in ([], "a", 1, None, {"a": 1}, {"a": None}, {"a": {}}):
        yield Crafted(name, f"metadata {value!r}", _file({"__metadata__": value}, b""))
    for text in _bombs():
        yield Crafted(name, f"{len(text)} bytes of JSON that begin {text[:16]!r}", _file(text))
    many = b"{" + b",".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(80_000)) + b"}"
    yield Crafted(name, "80,000 tensors", _file(many, b""))
    for shape in ("[" + "1," * 40_000 + "1]", "[" * 40_000):
        text = b'{"a":{"dtype":"U8","shape":%s,"data_offsets":[0,4]}}' % shape.encode()
        yield Crafted(name, f"a shape of {len(shape)} characters", _file(text))


def _bombs() -> Iterator[bytes]:
    """JSON that is small and takes much, or is none."""
    yield b"[" * MANY
    yield b"[[]," * MANY
    yield b"{" + b'"a":{' * 200_000
    yield b"[" + b"{}," * MANY + b"{}]"
    yield b"{" + b",".join(b'"%d":0' % i for i in range(400_000)) + b"}"
    yield b"9" * 100_000
    yield b'{"a":' + b"9" * 5000 + b"}"
    yield b"1e999999999"
    yield b'{"a":NaN}'
    yield b'{"a":-Infinity}'
    yield b'"' + b"\\u0000" * 100_000
    yield b"\xff\xfe" + "{}".encode("utf-16-le")
    yield b"\xed\xa0\x80"
    yield b'{"a":"\\ud800"}'
    yield b""
    yield b"\0" * 1000
    yield b"null"
    yield b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94."  # a pickle
    yield b"PK\x03\x04" + b"\0" * 30  # a zip, as torch.save writes


_ODD = (b'{"a":NaN}', b'{"a":-Infinity}', b'{"a":"\\ud800"}', b"\xff\xfe" + "{}".encode("utf-16-le"))
"""What Python's reader takes, and does no harm where nothing is computed from it."""


def _indexes() -> Iterator[Crafted]:
    name = "shard index"
    for path in _PATHS:
        yield Crafted(name, f"a shard {path[:30]!r}", json.dumps({"weight_map": {"a": path}}).encode())
    for value in (None, [], 1, "a", {"a": 1}, {"a": None}, {"a": ["one.safetensors"]}):
        yield Crafted(name, f"weight_map {value!r}", json.dumps({"weight_map": value}).encode())
    for text in _bombs():
        yield Crafted(name, f"{len(text)} bytes that begin {text[:16]!r}", text)
    yield Crafted(name, "tensors that are not there", b'{"weight_map": {"zz": "one.safetensors"}}')


_PATHS = ("../x", "/etc/passwd", "a/b.safetensors", "..", ".", "", "x\0y", "a" * 5000, "C:\\x", "~root", ".ssh",
          "one.safetensors/", "./one.safetensors", "one.safetensors\n", "пример", "con\u202e", "%2e%2e%2f", "a\\..\\b",
          "\ud800")  # fmt: skip


def _deltas(manifest: bytes) -> Iterator[Crafted]:
    for text in _bombs():
        yield Crafted("manifest", f"{len(text)} bytes that begin {text[:16]!r}", text)
    whole = json.loads(manifest)
    matrix = next(number for number, tensor in enumerate(whole["tensors"]) if tensor["kind"] == "linear")
    for path in _PATHS:
        yield Crafted("delta manifest", f"a file {path[:30]!r}", _with(whole, ("files", 1, "path"), path))
    numbers = (-1, 0, 1, 1 << 63, 1 << 64, 10**40, None, "4", 0.5, [4])
    for field, value in itertools.product(("bytes", "shape", "params", "dtype", "codec", "base", "kind"), numbers):
        yield Crafted("delta manifest", f"tensor's {field} {value!r}", _with(whole, ("tensors", matrix, field), value))
    for shape in ([1 << 62, 1 << 62], [1 << 40, 64], [0, 64], [-64, -64], [64] * 64, [], [10**30, 1]):
        yield Crafted("delta manifest", f"shape {shape[:3]}", _with(whole, ("tensors", matrix, "shape"), shape))
    for size in (1, 7, 17, -16, 1 << 31, 1 << 62, 1 << 70):
        yield Crafted(
            "delta manifest", f"group {size}", _with(whole, ("tensors", matrix, "params"), {"group_size": size})
        )
    for field in ("size", "sha256", "source"):
        for value in (-1, 10**40, "", "x", None, "A" * 64):
            yield Crafted("delta manifest", f"file's {field} {value!r}", _with(whole, ("files", 0, field), value))
    for raw, stored in ((1 << 60, 9), (1, 1), (-1, 9), (0, 0), (1 << 70, 1)):
        stream = {"codes": {"raw_bytes": raw, "stored_bytes": stored}}
        yield Crafted(
            "delta manifest", f"a stream of {raw} bytes", _with(whole, ("tensors", matrix, "lossless"), stream)
        )
    for codec in ("exec", "../x", "pickle", "int9", "same", "dense", "sparse24_int2", "vector8", "exact", "lowrank"):
        yield Crafted("delta manifest", f"codec {codec}", _with(whole, ("tensors", matrix, "codec"), codec))


def _with(whole: Any, path: tuple[str | int, ...], value: Any) -> bytes:
    copy = json.loads(json.dumps(whole))
    at = copy
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return json.dumps(copy).encode()


def _configs(config: bytes) -> Iterator[Crafted]:
    whole = json.loads(config)
    numbers = (-1, 0, 1 << 31, 1 << 62, 10**30, 10**400, 0.5, "2", None, [], {}, True, float("nan"), float("inf"))
    fields = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
              "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta")  # fmt: skip
    for field, value in itertools.product(fields, numbers):
        harmless = value is None or value == whole.get(field) or (field == "rope_theta" and value == 0)  # as if absent
        yield Crafted("config.json", f"{field} {str(value)[:20]}", _with(whole, (field,), value), harmless)
    for value in ("GPT2LMHeadModel", ["GPT2LMHeadModel"], [], None, 1, [[]], ["LlamaForCausalLM", 1]):
        yield Crafted("config.json", f"architectures {value!r}", _with(whole, ("architectures",), value))
    for text in _bombs():
        yield Crafted("config.json", f"{len(text)} bytes that begin {text[:16]!r}", text)
        yield Crafted("declared config", f"{len(text)} bytes that begin {text[:16]!r}", text, text in _ODD)


def _adapters() -> Iterator[Crafted]:
    good = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}
    patterns = ("(a+)+$", "(a|a)*b", ".*.*.*.*.*x", "(?=a)", "a{1,99999}", "\\", "[", "(" * 500, "a" * 5000, "(?P<a>x)")
    for pattern in patterns:
        yield Crafted("adapter_config.json", f"pattern {pattern[:20]!r}", json.dumps(
            good | {"rank_pattern": {pattern: 4}}).encode())  # fmt: skip
    for field, value in itertools.product(("r", "lora_alpha"), (0, -1, 10**30, 10**400, "4", None, 0.5, [], True)):
        yield Crafted("adapter_config.json", f"{field} {str(value)[:20]}", json.dumps(good | {field: value}).encode())
    for field in ("use_dora", "fan_in_fan_out", "auto_mapping", "modules_to_save", "peft_type"):
        yield Crafted("adapter_config.json", f"{field} of a list", json.dumps(good | {field: [1]}).encode())


def _json_files() -> Iterator[Crafted]:
    harmless = ("tokenizer side files", "report")  # text in them may be anything; JSON that is none is no report
    for parser in ("tokenizer.json", "tokenizer side files", "report", "job record", "upload.json", "chat body",
                   "json schema"):  # fmt: skip
        for text in _bombs():
            yield Crafted(
                parser, f"{len(text)} bytes that begin {text[:16]!r}", text, parser in harmless or text in _ODD
            )


def _rows() -> Iterator[Crafted]:
    for parser in ("calibration rows", "evaluation rows"):
        for text in _bombs():
            yield Crafted(parser, f"{len(text)} bytes that begin {text[:16]!r}", text)
        for row in ({}, {"text": 1}, {"text": None}, {"prompt": "a"}, {"prompt": "a", "targets": []},
                    {"prompt": "a", "targets": "b"}, {"prompt": 1, "targets": ["a"]}, {"messages": []},
                    {"messages": "a"}, {"messages": [1]}, {"text": "\ud800"}, {"completion": "a"}):  # fmt: skip
            yield Crafted(parser, f"row {row}", json.dumps(row).encode())
        yield Crafted(parser, "a line of 5 MiB", b'{"text": "' + b"a" * (5 << 20) + b'"}')


def _templates() -> Iterator[Crafted]:
    for source in (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 10**12 }}",
        "{% set n = 10**12 %}{{ 'a' * n }}",
        "{{ '%1000000000000d' | format(1) }}",
        "{{ 'a' | center(10**12) }}",
        "{{ 'a'.ljust(10**12) }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{{ range(10**12) | list }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({}) }}",
        "{{ ().__class__.__base__ }}",
        "{{ lipsum.__globals__['os'] }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ 'a'.format.__globals__ }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
        "{{ '{a.__class__}'.format_map({'a': 1}) }}",
        "{{ ''|attr('__class__')|attr('__mro__') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends '/etc/passwd' %}",
        "{% for m in messages %}",
        "{{ 1 / 0 }}",
        "{{ " + "(" * 9999,
        "{{ " + "[" * 9999 + "]" * 9999 + " }}",
        "{% if " + "not " * 9999 + "1 %}{% endif %}",
        "{{ '\\ud800' }}",
        "{{ messages | map('upper') | first() | pprint | wordwrap(-1) }}",
        "{{ raise_exception('no') }}",
        "{{ strftime_now(1) }}",
        "{{ 9 ** 9 ** 9 ** 9 }}",
    ):
        yield Crafted("chat template", source[:50], source.encode(), source in _EMPTY)
    yield Crafted("chat template", "not UTF-8", b"\xff\xfe")


_EMPTY = ("{{ raise_exception.__globals__ }}", "{{ 'a'.format.__globals__ }}",
          "{{ '{a.__class__}'.format_map({'a': 1}) }}",
          "{{ ''|attr('__class__')|attr('__mro__') }}", "{{ 9 ** 9 ** 9 ** 9 }}")  # fmt: skip
"""Templates whose forbidden parts are undefined, which renders as nothing; and a number that Python can still write."""


def _settings() -> Iterator[Crafted]:
    for parser, field in (("alias object", "target"), ("pin object", "pinned")):
        for text in _bombs():
            yield Crafted(parser, f"{len(text)} bytes that begin {text[:16]!r}", text, harmless=True)
        for value in (None, 1, [], {}, "../x", "m@0", "m@" + "9" * 5000, "\ud800", "m/../x", "s", "s@1", True, ""):
            yield Crafted(parser, f"{field} {value!r:.30}", json.dumps({field: value}).encode(), harmless=True)
    for text in _bombs():
        yield Crafted("published manifest", f"{len(text)} bytes that begin {text[:16]!r}", text)


def _names() -> Iterator[Crafted]:
    """Model ids and paths; parsers of names look themselves that nothing unsafe is taken."""
    for path in hostile_names():
        yield Crafted("names", path[:40], path.encode(errors="surrogateescape"), harmless=True)


def hostile_names() -> list[str]:
    """Returns more than 500 ids and paths that try to leave their folder, or to look like others."""
    ups = ("..", "../", "..\\", "%2e%2e/", "..%2f", "....//", "..;/", ".\u2024/", "\uff0e\uff0e/", "..\0/", "../" * 40)
    ends = (
        "etc/passwd",
        "m",
        "deltas/m/1/manifest.json",
        "identity",
        "",
        "windows\\win.ini",
        ".ssh/id_rsa",
        "proc/1/mem",
    )
    found = [up + end for up in ups for end in ends]
    found += [f"m/{name}" for name in found] + [f"models/{name}" for name in found] + [f"m@{name}" for name in found]
    found += [f"models/m/revisions/{name}" for name in found[:88]]
    found += ["/" + end for end in ends] + ["file:///" + end for end in ends] + ["C:\\" + end for end in ends]
    found += [f"m{chr(code)}x" for code in (*range(33), 127, 0x85, 0xA0, 0x200B, 0x202E, 0x2028, 0xFEFF, 0x430, 0xFF41)]
    found += [f"{chr(code)}" for code in range(33, 48)] + [chr(code) for code in range(58, 97)]
    found += ["m@", "@1", "m@@1", "m@1@2", "m@0", "m@-1", "m@01", "m@1.0", "m@1e3", "m@٣", "m@²", "m@" + "9" * 99,
              "m@0x1",
              "M", "m" * 64, "m" * 100_000, "", ".", "..", "-m", "_m", ".m", "m.", "m..n", "con", "nul", "aux.json",
              "~", "~root", "$HOME", "`id`", "$(id)", "m;id", "m|id", "m&id", "m\nid", "*", "?", "[a]", "{a,b}",
              "<script>", "' or 1=1", "\u0000", "m\udcff", "models//revisions/1", "models/m/revisions/", "models/m/1",
              "models/m/revisions/1/2", "Models/m", "models/m ", " models/m"]  # fmt: skip
    return found
