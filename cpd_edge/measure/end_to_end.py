"""The stages of a deployment, put around whatever kind of engine there is."""

from __future__ import annotations

from cpd_edge.measure.device_frames import DeviceFrames
from cpd_edge.measure.engine_runner import EngineRunner
from cpd_edge.measure.frames import Camera, HostFrames, InPlace, StagedRunner
from cpd_edge.measure.remote import RemoteRunner
from cpd_edge.measure.site import Runner


def end_to_end(runner: Runner, camera: Camera) -> StagedRunner:
    """The engine from a camera's frame to a result: on its GPU, on its device's CPU, or on this one.

    Raises:
        ModelError: it is no network from one frame to classes or a class map.
        RuntimeMissing: what the stages need is not there.
    """
    if isinstance(runner, EngineRunner):
        return DeviceFrames(runner, camera)
    if isinstance(runner, RemoteRunner):
        runner.frame(camera)
        return runner
    engine: InPlace = runner  # type: ignore[assignment]
    return HostFrames(engine, camera)


__all__ = ["end_to_end"]
