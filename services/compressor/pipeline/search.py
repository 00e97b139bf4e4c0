"""Attempts at one fine-tune: plan, code, measure, judge, until the plan's end; see `plan` for what follows what."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from deltaserve.delta.classes import classify
from deltaserve.delta.headers import DTYPE_BYTES
from deltaserve.delta.manifest import MANIFEST_FILE, Manifest, TensorClass
from services.compressor.pipeline.assembly import Assembly
from services.compressor.pipeline.choices import EXACT, Choice, Chooser
from services.compressor.pipeline.coder import Coder
from services.compressor.pipeline.compression import Compression, coding_of_parts
from services.compressor.pipeline.decoder import Decoder
from services.compressor.pipeline.hidden import Memory
from services.compressor.pipeline.models import Models
from services.compressor.pipeline.pair import Pair
from services.compressor.pipeline.parts import Parts
from services.compressor.pipeline.plan import Attempt, Plan, Planner
from services.compressor.pipeline.profile import Profile, Profiler, profiled_batches
from services.compressor.pipeline.progress import Progress
from services.compressor.pipeline.report import make_report
from services.compressor.pipeline.samples import Samples
from services.compressor.pipeline.spec import Spec

log = logging.getLogger(__name__)

_SMALLEST_FIRST = 1.1  # bits a parameter with which the search for the smallest size begins if no KL tells where
_HEADER = 4096  # bytes allowed for the payload's own header, planes of coded tensors not counted
_KEPT_HEADER = 160  # bytes of such a header that a tensor kept whole takes, its name included


@dataclass(frozen=True, slots=True)
class Outcome:
    """A packed delta in the folder of the result, and its report."""

    manifest: Manifest
    report: dict[str, Any]


@dataclass(frozen=True)
class Search:
    """The attempts of one run."""

    spec: Spec
    pair: Pair
    decoder: Decoder
    samples: Samples
    parts: Parts
    assembly: Assembly
    progress: Progress

    def run(self) -> Outcome:
        """Returns the outcome to deliver: the smallest that meets the policy, else the last attempt's."""
        memory = Memory(self.spec.memory_bytes, self.spec.device_bytes * 2 // 5)
        profiler = Profiler(self.pair, self.decoder, memory, self.parts.folder, self._chooser, self._pinned)
        models = Models.over(self.samples, self.decoder, memory, self.spec.work)
        planner = self._planner()
        attempts = [msgspec.convert(one, Attempt) for one in self.parts.attempts]
        outcome: Outcome | None = None
        while plan := self._next(planner, profiler, attempts):
            attempt, outcome = self._try(plan, profiler, models, attempts)
            attempts.append(attempt)
            self.parts.note(msgspec.to_builtins(attempt))
        chosen = planner.best(attempts) or attempts[-1]
        if outcome is None or chosen is not attempts[-1]:  # coded again, to the same bits
            plan = Plan(chosen.choices, chosen.predicted_kl)
            _, outcome = self._try(plan, profiler, models, attempts, again=True)
        return outcome

    @property
    def _chooser(self) -> Chooser:
        options = self.spec.options
        return Chooser(options.linear_codec, options.fixed_embedding_codec, options.group_size)

    @property
    def _pinned(self) -> tuple[TensorClass, ...]:
        return ("embedding", "lm_head") if self.spec.options.embedding_codec else ()

    def _planner(self) -> Planner:
        options = self.spec.options
        choices = {
            name: Choice(EXACT) if self.pair.ready else self._chooser.choice(classify(name, h.shape), h.shape)
            for name, h in self.pair.coded().items()
        }
        return Planner(
            self.spec.policy,
            parameters=sum(torch.Size(header.shape).numel() for header in self.pair.tuned.tensors.values()),
            fixed_bytes=self._fixed_bytes(),
            first=None if options.allocates and not self.pair.ready else choices,
            bits=options.budget or self.spec.policy.max_bits_per_param or _SMALLEST_FIRST,
            smallest=options.smallest,
        )

    def _fixed_bytes(self) -> int:
        coded = self.pair.coded()
        kept = [header for name, header in self.pair.tuned.tensors.items() if name not in coded]
        weights = sum(torch.Size(header.shape).numel() * DTYPE_BYTES[header.dtype] + _KEPT_HEADER for header in kept)
        return weights + self.assembly.side_bytes() + _HEADER

    def _next(self, planner: Planner, profiler: Profiler, attempts: list[Attempt]) -> Plan | None:
        if self.pair.ready and attempts:
            return None  # all there is
        needs_table = attempts[-1].failures or planner.smallest if attempts else planner.first is None
        if not needs_table:
            return planner.next(None, attempts) if not attempts else None
        return planner.next(self._profile(profiler).table, attempts)

    def _profile(self, profiler: Profiler) -> Profile:
        found = profiler.load()
        if found is not None:
            return found
        return profiler.make(*profiled_batches(self.samples), self.progress)

    def _try(
        self, plan: Plan, profiler: Profiler, models: Models, attempts: list[Attempt], *, again: bool = False
    ) -> tuple[Attempt, Outcome]:
        (self.spec.out / MANIFEST_FILE).unlink(missing_ok=True)  # a former attempt is no result while this one is made
        priors = profiler.priors()
        self.progress.attempting(len(attempts) + (not again))
        self.parts.begin(coding_of_parts(plan.choices, self.decoder.layers, profiled=bool(priors)))
        compression = Compression(self.pair, Coder(self.pair, plan.choices), self.parts, models, self.progress, priors)
        heads = compression.run()
        self.progress.at("evaluating")
        quality, accuracy = models.measure(self.samples, heads)
        manifest = self.assembly.assemble(self.parts)
        report = make_report(manifest, quality, accuracy, self.samples, self.parts.errors(), self.spec)
        attempt = Attempt(
            choices=dict(plan.choices),
            predicted_kl=plan.predicted_kl,
            bits=8 * manifest.sizes.delta_bytes / manifest.sizes.parameters,
            kl=quality.kl,
            agreement=quality.agreement,
            accuracy_drop=None if accuracy is None else 100 * (accuracy["fine_tune"] - accuracy["compressed"]),
            failures=report["gate"]["failures"],
        )
        made = attempts if again else [*attempts, attempt]
        log.info("attempt %d: %.3f bits, KL %.5f, misses %s", len(made), attempt.bits, attempt.kl, attempt.failures)
        return attempt, Outcome(manifest, report | {"allocation": self._allocation(attempt, made)})

    def _allocation(self, chosen: Attempt, made: list[Attempt]) -> Mapping[str, Any]:
        options = self.spec.options
        labels: dict[str, int] = {}
        for choice in chosen.choices.values():
            labels[choice.label] = labels.get(choice.label, 0) + 1
        return {
            "preset": options.preset or ("smallest" if options.smallest else options.codec or ""),
            "budget_bits": options.budget,
            "predicted_kl": chosen.predicted_kl,
            "choices": dict(sorted(labels.items())),
            "attempts": [
                {"bits": a.bits, "kl": a.kl, "agreement": a.agreement, "accuracy_drop": a.accuracy_drop,
                 "failures": a.failures}
                for a in made
            ],
        }  # fmt: skip
