"""One run: prepare, code part after part, measure, assemble."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch

from deltaserve.delta.adapted import open_fine_tune
from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.fingerprint import cached_fingerprint
from deltaserve.delta.manifest import MANIFEST_FILE, BaseRef, Manifest
from deltaserve.delta.reader import file_sha256
from deltaserve.delta.writer import Identity, write_manifest
from deltaserve.errors import QualityGateError
from deltaserve.files import publish, temp_beside
from services.compressor.pipeline.coder import Coder
from services.compressor.pipeline.compression import Compression
from services.compressor.pipeline.decoder import Decoder
from services.compressor.pipeline.hidden import Memory
from services.compressor.pipeline.models import Models
from services.compressor.pipeline.pair import Pair
from services.compressor.pipeline.parts import Parts
from services.compressor.pipeline.progress import Progress
from services.compressor.pipeline.report import make_report
from services.compressor.pipeline.samples import Samples, calibration_rows, gather
from services.compressor.pipeline.spec import Spec
from services.compressor.pipeline.spelling import writes_blank
from services.compressor.pipeline.text import has_tokenizer, open_tokenizer

log = logging.getLogger(__name__)

REPORT_FILE = "report.json"
_REVISION = "1"  # publication replaces it


@torch.no_grad()
def run(spec: Spec, progress: Progress) -> Manifest:
    """Compresses a fine-tune and leaves the packed delta with its report in `spec.out`.

    Goes on after the parts that a former run in the same work folder has finished, with the same result.

    Raises:
        QualityGateError: the report, which is there, misses the policy; there is no manifest then.
        DeltaServeError: the fine-tune, the base or a side file is refused.
    """
    began = time.monotonic()
    progress.at("preparing")
    device = torch.device(spec.device)
    base = Checkpoint.open(spec.base)
    pair = Pair(base, open_fine_tune(spec.tuned, base), device)
    pair.check()
    decoder = Decoder(pair.tuned.config, device)
    samples = _samples(spec, pair, decoder)
    fingerprint = spec.base_fingerprint or cached_fingerprint(pair.base, spec.work / "fingerprints")
    parts = Parts(spec.work, _key(spec, pair, fingerprint))
    models = Models.over(samples, decoder, Memory(spec.memory_bytes), spec.work)
    compression = Compression(pair, Coder(pair, spec.options), parts, models, progress)
    heads = compression.run()
    progress.at("evaluating")
    quality, accuracy = models.measure(samples, heads)
    identity = Identity(
        spec.model, _REVISION, parts.created, BaseRef(fingerprint=fingerprint, architecture=pair.base.architecture),
        pair.tuned.config,
    )  # fmt: skip
    manifest = _assemble(spec, pair, parts, identity)
    report = make_report(manifest, quality, accuracy, samples, parts.errors(), spec)
    log.info("compressed %s in %.1f s", spec.model, time.monotonic() - began)
    return _deliver(spec, manifest, report)


def _samples(spec: Spec, pair: Pair, decoder: Decoder) -> Samples:
    tokenizer = open_tokenizer(pair.base, pair.tuned)
    rows = calibration_rows(spec.calibration)
    if writes_blank(pair, decoder, tokenizer, rows, spec.work):
        tokenizer.blank = " "
    return gather(
        tokenizer,
        rows,
        spec.evaluation,
        samples=spec.options.calibration_samples,
        tokens=spec.options.calibration_tokens,
        context=decoder.context,
    )


def _key(spec: Spec, pair: Pair, fingerprint: str) -> Mapping[str, Any]:
    """Returns everything that packed tensors follow from."""
    return {
        "base": fingerprint,
        "tuned": cached_fingerprint(pair.stored, spec.work / "fingerprints"),
        "config": dict(pair.stored.config),
        "side": {name: file_sha256(path) for name, path in pair.tuned.side_files().items()},
        "calibration": file_sha256(spec.calibration) if spec.calibration else "",
        "options": msgspec.structs.asdict(spec.options),
        "device": torch.device(spec.device).type,
    }


def _assemble(spec: Spec, pair: Pair, parts: Parts, identity: Identity) -> Manifest:
    """Writes payload and side files; a fine-tune without a tokenizer is served with the base's."""
    shutil.rmtree(spec.out, ignore_errors=True)
    base_files = pair.base.side_files()
    files = pair.tuned.side_files()
    if not has_tokenizer(pair.tuned):
        files = base_files | files
    made = msgspec.structs.asdict(spec.options) if pair.origin is None else {"adapter": pair.origin}
    compression = {**made, "torch": torch.__version__.split("+")[0]}
    return parts.writer.finish(spec.out, identity, files=files, base_files=base_files, compression=compression)


def _deliver(spec: Spec, manifest: Manifest, report: dict[str, Any]) -> Manifest:
    _write_report(spec.out / REPORT_FILE, report)
    failures = report["gate"]["failures"]
    if failures:
        (spec.out / MANIFEST_FILE).unlink()
        text = "; ".join(failures)
        raise QualityGateError(f"{spec.model!r} misses its quality policy: {text}", failures=len(failures))
    final = msgspec.structs.replace(manifest, report=report)
    write_manifest(spec.out, final)
    return final


def _write_report(path: Path, report: Mapping[str, Any]) -> None:
    temp = temp_beside(path)
    temp.write_text(json.dumps(report, indent=1))
    publish(temp, path)
