import pytest
import torch

from services.compressor.pipeline.precision import tensor_cores


@pytest.mark.parametrize("before", [False, True])
def test_the_setting_holds_only_within_even_after_an_error(before: bool):
    setting = torch.backends.cuda.matmul
    kept = setting.allow_tf32
    setting.allow_tf32 = before
    try:
        with pytest.raises(ValueError, match="inside"), tensor_cores():
            assert setting.allow_tf32
            raise ValueError("inside")
        assert setting.allow_tf32 is before
    finally:
        setting.allow_tf32 = kept
