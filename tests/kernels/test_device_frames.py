"""An emulated engine between our kernels, through the real bindings of the driver: order, memory, results.

The driver, the CUDA runtime and TensorRT are emulated; the kernels are their CPU build. Nothing here says that a GPU
does the same, or how long it takes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from on_host import pretending

HERE = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"

RUN = (
    HERE
    + """
from pathlib import Path
import numpy as np
from cpd_edge.kernels import reference
from cpd_edge.measure import Protocol, measure
from cpd_edge.measure.device_frames import STAGES, DeviceFrames
from cpd_edge.measure.frames import Camera, colours
from measure.emulated_gpu import LAYER_MS, EmulatedCuda, runner_in

head, letterbox = HEAD, LETTERBOX
cuda = EmulatedCuda()
camera = Camera(24, 40, letterbox)
staged = DeviceFrames(runner_in(FOLDER, cuda, head=head), camera)
frames = np.random.default_rng(0).integers(0, 256, (8, 24, 40, 3), np.uint8)
for frame in frames:
    cuda.copies.clear()
    staged.run()
    assert [1] + [2] * len(staged.result) == cuda.copies, cuda.copies  # up, then down
    image = reference.preprocess(camera.recipe((1, 3, 8, 8)), frame[None])
    if head == "image":
        expected = (reference.palette(reference.argmax(image), colours()),)
        assert np.array_equal(expected[0], staged.result[0])
    else:
        values, classes = reference.topk(image.mean(axis=(2, 3)), 5)
        assert np.allclose(values[:, :3], staged.result[0], atol=1e-6)
        assert np.array_equal(classes[:, :3], staged.result[1])
found = measure(staged, "it", Protocol(warmup_s=0.01, block_s=0.01, limit_s=0.2, min_blocks=2))
stages = staged.stage_ms(found.starts_ns)
assert list(STAGES) == list(stages)
assert {sum(LAYER_MS.values())} == set(np.round(stages["engine"], 9))  # the emulated clock moves with the engine alone
assert not stages["upload"].any() and not stages["postprocess"].any()
assert "CUDA kernels" in found.environment["stages"] and "24x40x3" == found.environment["frame"]
staged.close()
assert {} == cuda.live
"""
)


@pytest.mark.parametrize("letterbox", [False, True], ids=["stretched", "letterboxed"])
@pytest.mark.parametrize("head", ["means", "image"])
def test_a_frame_becomes_a_result_on_the_engine_s_stream(
    driver: Path, tmp_path: Path, head: str, letterbox: bool
) -> None:
    """Upload, preprocess, engine, postprocess, download: the reference's result, and everything given back."""
    settings = {"HEAD": repr(head), "LETTERBOX": repr(letterbox), "FOLDER": f"Path({str(tmp_path)!r})"}
    code = RUN
    for name, value in settings.items():
        code = code.replace(name, value)
    done = pretending(code, driver)
    assert done.returncode == 0, done.stderr
    order = [line.split()[1] for line in done.stderr.splitlines() if line.startswith("launch ")]
    per_frame = ["preprocess_f32", *(["argmax_f32", "palette"] if head == "image" else ["topk_f32"])]
    assert per_frame * (len(order) // len(per_frame)) == order


REFUSED = (
    HERE
    + """
from pathlib import Path
import numpy as np
from cpd_edge.errors import ModelError
from cpd_edge.measure.device_frames import DeviceFrames
from cpd_edge.measure.frames import Camera
from measure.emulated_gpu import EmulatedCuda, runner_in

engine = runner_in(FOLDER, EmulatedCuda(), batch=2)
try:
    DeviceFrames(engine, Camera(24, 40))
except ModelError as error:
    assert "leave out --end-to-end" in str(error)
    raise SystemExit(7)
"""
)


def test_an_engine_for_more_than_one_frame_is_refused(driver: Path, tmp_path: Path) -> None:
    """Before anything is loaded or allocated for the stages."""
    done = pretending(REFUSED.replace("FOLDER", f"Path({str(tmp_path)!r})"), driver)
    assert (7, False) == (done.returncode, "launch" in done.stderr), done.stderr
