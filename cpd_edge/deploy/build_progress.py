"""How far a build is, where the runtime tells.

An exception must not cross the runtime's own frames, so one that the caller raises is kept and raised after the build.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Progress = Callable[[float, str], None]


class Silent:
    """Progress of a runtime that tells none: it begins and ends."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        if progress is not None:
            progress(0.0, "building")

    def finish(self) -> None:
        """Says that it is done."""
        if self._progress is not None:
            self._progress(1.0, "")


def progress_monitor(trt: Any, config: Any, progress: Progress | None) -> Any:
    """Attaches a monitor to a builder configuration where there is such a thing; `finish()` it after the build.

    An exception from `progress` cannot cross the runtime: it cancels the build, and `finish` raises it.
    """
    if progress is None or not hasattr(trt, "IProgressMonitor") or not hasattr(config, "progress_monitor"):
        return Silent(progress)
    tell = progress

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.open: list[list[Any]] = []
            self.furthest = 0.0
            self.cause: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.open.append([phase_name, 0, max(num_steps, 1)])
            self.say(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            self.open = [phase for phase in self.open if phase[0] != phase_name]

        def step_complete(self, phase_name: str, step: int) -> bool:
            for phase in self.open:
                if phase[0] == phase_name:
                    phase[1] = step + 1
            self.say(phase_name)
            return self.cause is None

        def say(self, phase_name: str) -> None:
            if self.cause is not None:
                return
            fraction, share = 0.0, 1.0
            for _, done, steps in self.open:
                fraction += share * min(done / steps, 1.0)
                share /= steps
            self.furthest = max(self.furthest, min(fraction, 0.999))
            try:
                tell(self.furthest, phase_name)
            except BaseException as error:  # nothing is hidden: `finish` raises it
                self.cause = error

        def finish(self) -> None:
            if self.cause is not None:
                raise self.cause
            tell(1.0, "")

    monitor = Monitor()
    config.progress_monitor = monitor
    return monitor


__all__ = ["Progress", "Silent", "progress_monitor"]
