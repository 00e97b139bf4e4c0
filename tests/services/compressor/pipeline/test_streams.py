from pathlib import Path

import torch

from deltaserve.delta.checkpoint import Checkpoint
from deltaserve.delta.classes import EMBEDDING
from services.compressor.pipeline.batches import make_batches
from services.compressor.pipeline.decoder import Decoder
from services.compressor.pipeline.hidden import Hidden, Memory
from services.compressor.pipeline.pair import Pair
from services.compressor.pipeline.streams import STAGES, Calibration, Stream

CPU = torch.device("cpu")


def make_calibration(pair: Pair, folder: Path) -> Calibration:
    decoder, memory = Decoder(pair.tuned.config, CPU), Memory(1 << 30)
    batches = make_batches([[(5 * i + n) % 250 for i in range(n)] for n in (3, 9, 14, 15)], 30)
    streams = [Stream(decoder, batches, Hidden(memory, folder, CPU)) for _ in range(2)]
    streams[0].begin(pair.tuned_tensor(EMBEDDING))
    streams[1].begin(pair.base_tensor(EMBEDDING))
    return Calibration(*streams, Hidden(memory, folder, CPU))


@torch.no_grad()
def test_stages_leave_what_advancing_leaves_bit_for_bit(pair: tuple[Path, Path], tmp_path: Path):
    models = Pair(Checkpoint.open(pair[0]), Checkpoint.open(pair[1]), CPU)
    staged, plain = make_calibration(models, tmp_path), make_calibration(models, tmp_path)
    for index in range(3):
        layer = models.layer(index)
        for moments, stage in zip(staged.stages(index, layer.tuned, layer.served), STAGES, strict=True):
            assert moments.tokens == 41  # no padding
            for name in stage:
                layer.served[name] = layer.base[name] + 0.5 * (layer.tuned[name] - layer.base[name])
        plain.advance(index, layer.tuned, layer.served)
    for i in range(len(plain.tuned.batches)):
        assert torch.equal(staged.tuned.hidden[i], plain.tuned.hidden[i])
        assert torch.equal(staged.served.hidden[i], plain.served.hidden[i])


@torch.no_grad()
def test_moments_are_those_of_the_inputs_that_transformers_sees(pair: tuple[Path, Path], tmp_path: Path):
    import transformers

    models = Pair(Checkpoint.open(pair[0]), Checkpoint.open(pair[1]), CPU)
    calibration = make_calibration(models, tmp_path)
    layer = models.layer(0)
    whole = transformers.LlamaForCausalLM.from_pretrained(pair[1], dtype=torch.float32)
    seen: dict[str, list[torch.Tensor]] = {stage[0]: [] for stage in STAGES}
    for name, found in seen.items():
        linear = whole.model.layers[0].get_submodule(name.removesuffix(".weight"))
        linear.register_forward_pre_hook(lambda _, inputs, found=found: found.append(inputs[0][0]))
    for batch in calibration.tuned.batches:
        for tokens, valid in zip(batch.tokens, batch.valid, strict=True):
            whole(tokens[valid].unsqueeze(0))
    calibration.served.begin(models.tuned_tensor(EMBEDDING))
    for moments, stage in zip(calibration.stages(0, layer.tuned, layer.tuned), STAGES, strict=True):
        inputs = torch.cat(seen[stage[0]])
        torch.testing.assert_close(moments.gram, inputs.T @ inputs / len(inputs), atol=1e-4, rtol=1e-4)
        assert moments.cross is not None
        assert float(moments.cross.abs().max()) == 0.0  # both streams are the same
