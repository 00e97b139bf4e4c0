"""The quality report: what a user decides by, as the JSON that jobs and revisions carry."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import msgspec

from deltaserve.delta.manifest import Manifest, Sizes, TensorEntry
from deltaserve.delta.sizes import bits_per_parameter, ratio
from services.compressor.pipeline.quality import Model, Quality
from services.compressor.pipeline.samples import Samples
from services.compressor.pipeline.spec import Policy, Spec
from services.compressor.pipeline.spread import EDGES, Spread

VERSION = 2

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


class Gate(msgspec.Struct, frozen=True):
    """The policy's verdict; `failures` has a sentence for each limit that is missed."""

    passed: bool
    failures: list[str]


def make_report(
    manifest: Manifest,
    quality: Quality,
    accuracy: Mapping[Model, float] | None,
    samples: Samples,
    errors: Mapping[str, float],
    spec: Spec,
    generations: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the report.

    Args:
        manifest: of the packed delta, for its sizes and tensors.
        quality: figures over held-out text.
        accuracy: share of labelled rows answered exactly; None without evaluation.
        samples: what it was computed over.
        errors: relative output error of coded tensors by name.
        spec: the run, for its policy and the name of its calibration.
        generations: see generations.side_by_side; None leaves them out.

    Returns:
        A JSON object, described in docs/quality-report.md; the same inputs give the same object.
    """
    gate = check(spec.policy, quality, accuracy, manifest.sizes)
    return {
        "version": VERSION,
        "quality": {
            "kl": quality.kl,
            **_spread(quality.spread),
            "top1_agreement": quality.agreement,
            "perplexity": {m: p if math.isfinite(p) else None for m, p in quality.perplexity.items()},
            "sequences": len(samples.held_out),
            "tokens": quality.tokens,
            "counted": dict(sorted(Counter(one.counted for one in samples.held_out).items())),
        },
        "accuracy": None if accuracy is None else {**accuracy, "rows": samples.rows, "skipped": samples.skipped},
        "sizes": _sizes(manifest.sizes),
        "calibration": {
            "source": spec.calibration.name if spec.calibration else "built-in",
            "sequences": len(samples.calibration),
            "tokens": sum(len(sequence) for sequence in samples.calibration),
        },
        "layers": _layers(manifest, errors),
        "tensors": _tensors(manifest, errors),
        "generations": generations,
        "policy": {key: limit for key, limit in msgspec.structs.asdict(spec.policy).items() if limit is not None},
        "gate": msgspec.structs.asdict(gate),
    }


def check(policy: Policy, quality: Quality, accuracy: Mapping[Model, float] | None, sizes: Sizes) -> Gate:
    """Holds figures against a policy. A limit on accuracy fails when there was no evaluation."""
    failures: list[str] = []
    if policy.max_kl is not None and not quality.kl <= policy.max_kl:
        failures.append(f"KL is {quality.kl:.6g} nats a token; the policy allows {policy.max_kl:g}")
    if policy.min_agreement is not None and not quality.agreement >= policy.min_agreement:
        failures.append(f"top-1 agreement is {quality.agreement:.4f}; the policy asks for {policy.min_agreement:g}")
    failures += _accuracy_failures(policy.max_accuracy_drop, accuracy)
    bits = 8 * sizes.delta_bytes / sizes.parameters
    if policy.max_bits_per_param is not None and not bits <= policy.max_bits_per_param:
        failures.append(f"the delta takes {bits:.4g} bits a parameter; the policy allows {policy.max_bits_per_param:g}")
    return Gate(not failures, failures)


def _accuracy_failures(limit: float | None, accuracy: Mapping[Model, float] | None) -> Sequence[str]:
    if limit is None:
        return ()
    if accuracy is None:
        return (f"the policy allows an accuracy drop of {limit:g} points; there was no evaluation file to measure it",)
    drop = 100 * (accuracy["fine_tune"] - accuracy["compressed"])
    if drop <= limit + 1e-9:
        return ()
    return (f"accuracy drops by {drop:.2f} points to {100 * accuracy['compressed']:.2f}; the policy allows {limit:g}",)


def _sizes(sizes: Sizes) -> dict[str, Any]:
    return {
        "parameters": sizes.parameters,
        "checkpoint_bytes": sizes.checkpoint_bytes,
        "delta_bytes": sizes.delta_bytes,
        "bits_per_parameter": 8 * sizes.delta_bytes / sizes.parameters,
        "ratio": sizes.checkpoint_bytes / sizes.delta_bytes,
        "by_class": {
            kind: {
                **msgspec.structs.asdict(size),
                "bits_per_parameter": bits_per_parameter(size),
                "ratio": ratio(sizes, [kind]),
            }
            for kind, size in sizes.by_class.items()
        },
    }


def _spread(spread: Spread) -> dict[str, Any]:
    p50, p99 = (value if math.isfinite(value) else None for value in (spread.p50, spread.p99))
    return {"kl_p50": p50, "kl_p99": p99, "kl_histogram": {"edges": list(EDGES), "counts": list(spread.counts)}}


def _layers(manifest: Manifest, errors: Mapping[str, float]) -> list[dict[str, Any]]:
    """Returns mean and largest error of each layer's coded tensors, and their bits."""
    layers: dict[int, list[TensorEntry]] = defaultdict(list)
    for entry in manifest.tensors:
        place = _LAYER.match(entry.name)
        if place and entry.name in errors:
            layers[int(place[1])].append(entry)
    return [
        {
            "layer": layer,
            "error": sum(errors[entry.name] for entry in entries) / len(entries),
            "worst_error": max(errors[entry.name] for entry in entries),
            "bits_per_parameter": 8 * sum(e.bytes for e in entries) / sum(prod(e.shape) for e in entries),
        }
        for layer, entries in sorted(layers.items())
    ]


def _tensors(manifest: Manifest, errors: Mapping[str, float]) -> list[dict[str, Any]]:
    return [
        {
            "name": entry.name,
            "codec": entry.codec,
            "bytes": entry.bytes,
            "bits_per_parameter": 8 * entry.bytes / prod(entry.shape),
            "error": errors[entry.name],
        }
        for entry in manifest.tensors
        if entry.name in errors
    ]
