from deltaserve.delta.manifest import Sizes
from services.compressor.pipeline.quality import Quality
from services.compressor.pipeline.report import check
from services.compressor.pipeline.spec import Policy

QUALITY = Quality(tokens=10, kl=0.01, agreement=0.97, perplexity={"base": 9.0, "fine_tune": 5.0, "compressed": 5.1})
SIZES = Sizes(parameters=1000, checkpoint_bytes=2000, delta_bytes=500, by_class={})
ACCURACY = {"base": 0.1, "fine_tune": 0.9, "compressed": 0.89}


def test_no_limits():
    assert check(Policy(), QUALITY, None, SIZES).passed


def test_every_limit_is_met():
    policy = Policy(max_kl=0.01, min_agreement=0.97, max_accuracy_drop=1.0, max_bits_per_param=4.0)
    assert check(policy, QUALITY, ACCURACY, SIZES).passed


def test_every_limit_is_missed_with_its_numbers():
    policy = Policy(max_kl=0.005, min_agreement=0.98, max_accuracy_drop=0.5, max_bits_per_param=3.0)
    failures = check(policy, QUALITY, ACCURACY, SIZES).failures
    assert len(failures) == 4
    assert "0.01 nats" in failures[0]
    assert "0.9700" in failures[1]
    assert "1.00 points to 89.00" in failures[2]
    assert "4 bits" in failures[3]


def test_accuracy_limit_needs_an_evaluation():
    assert "no evaluation file" in check(Policy(max_accuracy_drop=5.0), QUALITY, None, SIZES).failures[0]


def test_figures_that_are_no_numbers_miss():
    broken = Quality(tokens=10, kl=float("nan"), agreement=float("nan"), perplexity=QUALITY.perplexity)
    assert len(check(Policy(max_kl=1.0, min_agreement=0.0), broken, None, SIZES).failures) == 2
