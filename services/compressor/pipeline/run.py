"""One run: prepare, search for a delta that meets what is asked, deliver it with its report."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch

from deltaserve.delta.adapted import open_fine_tune
from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.fingerprint import cached_fingerprint
from deltaserve.delta.manifest import MANIFEST_FILE, Manifest
from deltaserve.delta.reader import file_sha256
from deltaserve.delta.writer import write_manifest
from deltaserve.errors import QualityGateError
from deltaserve.files import publish, temp_beside
from deltaserve.report.page import PAGE_FILE, render
from services.compressor.pipeline.assembly import Assembly
from services.compressor.pipeline.decoder import Decoder
from services.compressor.pipeline.generations import side_by_side
from services.compressor.pipeline.pair import Pair
from services.compressor.pipeline.parts import Parts
from services.compressor.pipeline.progress import Progress
from services.compressor.pipeline.samples import Samples, calibration_rows, gather
from services.compressor.pipeline.search import Search
from services.compressor.pipeline.spec import Spec
from services.compressor.pipeline.spelling import writes_blank
from services.compressor.pipeline.text import Tokenizer, open_tokenizer

log = logging.getLogger(__name__)

REPORT_FILE = "report.json"


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
    tokenizer = open_tokenizer(pair.base, pair.tuned)
    samples = _samples(spec, pair, decoder, tokenizer)
    fingerprint = spec.base_fingerprint or cached_fingerprint(pair.base, spec.work / "fingerprints")
    parts = Parts(spec.work, _key(spec, pair, fingerprint), lossless=spec.options.lossless)
    assembly = Assembly(spec, pair, fingerprint)
    outcome = Search(spec, pair, decoder, samples, parts, assembly, progress).run()
    said = side_by_side(pair, decoder, tokenizer, samples.held_out, spec.out, spec.memory_bytes)
    log.info("compressed %s in %.1f s", spec.model, time.monotonic() - began)
    return _deliver(spec, outcome.manifest, outcome.report | {"generations": said})


def _samples(spec: Spec, pair: Pair, decoder: Decoder, tokenizer: Tokenizer) -> Samples:
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
    """Returns everything that the result follows from."""
    return {
        "base": fingerprint,
        "tuned": cached_fingerprint(pair.stored, spec.work / "fingerprints"),
        "config": dict(pair.stored.config),
        "side": {name: file_sha256(path) for name, path in pair.tuned.side_files().items()},
        "calibration": file_sha256(spec.calibration) if spec.calibration else "",
        "options": msgspec.structs.asdict(spec.options),
        "policy": msgspec.structs.asdict(spec.policy),
        "device": torch.device(spec.device).type,
    }


def _deliver(spec: Spec, manifest: Manifest, report: dict[str, Any]) -> Manifest:
    _write(spec.out / REPORT_FILE, json.dumps(report, indent=1))
    _write(spec.out / PAGE_FILE, render(report, spec.model))
    failures = report["gate"]["failures"]
    if failures:
        (spec.out / MANIFEST_FILE).unlink()
        text = "; ".join(failures)
        raise QualityGateError(f"{spec.model!r} misses its quality policy: {text}", failures=len(failures))
    final = msgspec.structs.replace(manifest, report=report)
    write_manifest(spec.out, final)
    return final


def _write(path: Path, text: str) -> None:
    temp = temp_beside(path)
    temp.write_text(text, encoding="utf-8")
    publish(temp, path)
