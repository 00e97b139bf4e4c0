import io
import json

from services.compressor.pipeline.progress import Progress


def test_lines_and_remaining_time():
    now = 0.0
    out = io.StringIO()
    progress = Progress(out, clock=lambda: now)
    progress.layers_total = 4
    progress.at("compressing")
    now = 100.0
    progress.replayed()  # by a former process: says nothing about how long a layer takes
    now = 110.0
    progress.coded(0.25)
    progress.at("evaluating")
    written = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["eta_seconds"] for line in written] == [None, None, 20.0, None]
    assert [line["layers_done"] for line in written] == [0, 1, 2, 2]
    assert written[2]["layer_error"] == 0.25
    assert written[-1]["stage"] == "evaluating"


def test_parts_of_a_layer_count():
    now = 0.0
    out = io.StringIO()
    progress = Progress(out, clock=lambda: now)
    progress.layers_total = 2
    progress.at("compressing")
    now = 2.0
    progress.coding(1)
    assert json.loads(out.getvalue().splitlines()[-1])["eta_seconds"] == 18.0


def test_an_attempt_begins_at_the_first_layer():
    now = 0.0
    out = io.StringIO()
    progress = Progress(out, clock=lambda: now)
    progress.layers_total = 2
    progress.at("compressing")
    now = 50.0
    progress.coded(0.5)
    progress.attempting(2)
    progress.at("compressing")
    now = 60.0
    progress.coded(0.25)
    written = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["attempt"] for line in written] == [1, 1, 2, 2]
    assert [line["layers_done"] for line in written] == [0, 1, 0, 1]
    assert [line["layer_error"] for line in written] == [0.0, 0.5, 0.0, 0.25]
    assert written[-1]["eta_seconds"] == 10.0
