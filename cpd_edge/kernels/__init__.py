"""kernels: what an edge deployment needs around the engine, as CUDA sources, cubins, launches and a NumPy reference.

Preprocessing, segmentation argmax and palette, top-k, and two kernels for honest timing. The sources lie in
`kernels/`; compiling needs NVRTC only. What the sources compute is tested on a CPU, and
that they compile is tested for nine architectures; on a GPU of ours, preprocessing, segmentation and top-k have run.
"""

from cpd_edge.kernels.cubin import Cubin, Usage, cached_cubin, compile_cubin
from cpd_edge.kernels.driver import Module, driver_version, load, load_cubin
from cpd_edge.kernels.launches import Frames, Launch
from cpd_edge.kernels.recipe import Box, Preprocess
from cpd_edge.kernels.sources import ARCHITECTURES, FUNCTIONS

__all__ = [
    "ARCHITECTURES", "FUNCTIONS", "Box", "Cubin", "Frames", "Launch", "Module", "Preprocess", "Usage",
    "cached_cubin", "compile_cubin", "driver_version", "load", "load_cubin",
]  # fmt: skip
