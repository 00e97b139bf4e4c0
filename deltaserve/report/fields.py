"""What is shown of a quality report, read leniently: docs/quality-report.md says what a report holds."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]

_LAYER = re.compile(r"model\.layers\.(\d{1,6})\.")


class Figures(msgspec.Struct):
    """One figure of each of the three models; None where it is not finite."""

    base: float | None = None
    fine_tune: float | None = None
    compressed: float | None = None


class Accuracy(Figures):
    """Shares of labelled rows that are answered exactly, 0 to 1."""

    rows: Count = 0
    skipped: Count = 0

    @property
    def change(self) -> float | None:
        """Points that the compressed model gains over the fine-tune."""
        if self.fine_tune is None or self.compressed is None:
            return None
        return 100 * (self.compressed - self.fine_tune)


class Histogram(msgspec.Struct):
    """Places by KL: below edges[0], from edges[i - 1] up to edges[i], from edges[-1] on."""

    edges: list[float]
    counts: list[Count]

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.edges) + 1 or len(self.edges) < 2:
            raise ValueError(
                f"{len(self.counts)} counts and {len(self.edges)} edges; expected one count more than edges"
            )
        if not all(0 < low < high < float("inf") for low, high in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("edges do not ascend from above 0")


class Quality(msgspec.Struct):
    """Figures over held-out rows; KL in nats a token."""

    perplexity: Figures
    tokens: Count
    kl: float | None = None
    top1_agreement: float | None = None
    sequences: Count = 0
    kl_p50: float | None = None
    kl_p99: float | None = None
    kl_histogram: Histogram | None = None
    counted: dict[str, Count] = {}


class ClassSize(msgspec.Struct):
    """Sizes of the tensors of one class."""

    ratio: float
    bits_per_parameter: float
    tensors: Count = 0
    parameters: Count = 0
    checkpoint_bytes: Count = 0
    delta_bytes: Count = 0


class Sizes(msgspec.Struct):
    """Sizes of the whole."""

    checkpoint_bytes: Count
    delta_bytes: Count
    ratio: float
    bits_per_parameter: float
    by_class: dict[str, ClassSize] = {}
    parameters: Count = 0


class Calibration(msgspec.Struct):
    """What codes were fitted to."""

    source: str = ""
    sequences: Count = 0
    tokens: Count = 0


class Layer(msgspec.Struct):
    """Relative output errors of a layer's coded tensors."""

    layer: Count
    error: float
    worst_error: float | None = None
    bits_per_parameter: float | None = None


class Tensor(msgspec.Struct):
    """A coded tensor."""

    name: str
    codec: str
    error: float
    bytes: Count = 0
    bits_per_parameter: float | None = None


class Said(msgspec.Struct):
    """A continuation; `ended` when the model ended it by itself."""

    text: str
    ended: bool = False


class Prompt(msgspec.Struct):
    """A prompt and what the models say to it."""

    prompt: str
    fine_tune: Said
    compressed: Said
    base: Said | None = None
    expected: str | None = None
    cut: bool = False


class Generations(msgspec.Struct):
    """Continuations side by side; `left_out` says why there are none."""

    prompts: list[Prompt] = []
    left_out: str | None = None


class Gate(msgspec.Struct):
    """The policy's verdict."""

    failures: list[str] = []
    passed: bool = True


class Attempt(msgspec.Struct):
    """One try at meeting the policy."""

    bits: float
    kl: float | None = None
    agreement: float | None = None
    accuracy_drop: float | None = None
    failures: list[str] = []


class Allocation(msgspec.Struct):
    """How codecs were chosen."""

    preset: str = ""
    budget_bits: float | None = None
    predicted_kl: float | None = None
    choices: dict[str, Count] = {}
    attempts: list[Attempt] = []


class Report(msgspec.Struct):
    """All parts that a report may have; `unreadable` names those that are there and malformed."""

    quality: Quality | None = None
    sizes: Sizes | None = None
    accuracy: Accuracy | None = None
    calibration: Calibration | None = None
    layers: list[Layer] = []
    tensors: list[Tensor] = []
    generations: Generations | None = None
    allocation: Allocation | None = None
    policy: dict[str, float] = {}
    gate: Gate | None = None
    unreadable: list[str] = []


def parse(report: Mapping[str, Any]) -> Report:
    """Returns what can be shown of a report of version 1 or 2; unknown keys mean nothing, absent parts are fine."""
    parts: dict[str, Any] = {}
    unreadable = []
    for field in msgspec.structs.fields(Report):
        value = report.get(field.name)
        if value is None or field.name == "unreadable":
            continue
        try:
            parts[field.name] = msgspec.convert(value, field.type)
        except (msgspec.ValidationError, OverflowError):
            unreadable.append(field.name)
    found = Report(**parts, unreadable=unreadable)
    if not found.layers:
        found.layers = _layers(found.tensors)
    return found


def _layers(tensors: list[Tensor]) -> list[Layer]:
    """Returns errors by layer of a report of version 1, which does not have them."""
    errors: dict[int, list[float]] = defaultdict(list)
    for tensor in tensors:
        if place := _LAYER.match(tensor.name):
            errors[int(place[1])].append(tensor.error)
    return [Layer(layer, sum(found) / len(found), max(found)) for layer, found in sorted(errors.items())]
