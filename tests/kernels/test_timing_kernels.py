"""The timing kernels: the flush reads everything once, and the spin ends by the host's word or by its timeout."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from on_host import Host, exactly

from cpd_edge.errors import UsageError
from cpd_edge.kernels import launches, reference


@pytest.mark.parametrize("words", [1, 255, 512, 5000])
@pytest.mark.parametrize("blocks", [1, 3])
def test_the_flush_reads_every_word_once(host: Host, words: int, blocks: int) -> None:
    """The words' exclusive or is what the threads leave, each its share: none left out, none read twice."""
    buffer = np.random.default_rng(7).integers(0, 1 << 32, words, np.uint32)
    sums = exactly((blocks * 256,), np.uint32)
    host.run(launches.l2_flush(buffer.ctypes.data, buffer.nbytes, sums.ctypes.data, blocks=blocks))
    assert np.array_equal(reference.l2_flush(buffer, blocks * 256), sums)
    assert np.bitwise_xor.reduce(buffer) == np.bitwise_xor.reduce(sums)


def test_the_spin_goes_on_at_once_where_it_was_let_go_before(host: Host) -> None:
    """A word that is 1 already ends it as let go, however short the timeout."""
    state = np.array([1, 0], np.uint32)
    host.run(launches.spin(state.ctypes.data, 1e-6))
    assert [1, 1] == state.tolist()


def test_the_spin_times_out(host: Host) -> None:
    """A host that never answers does not hold it for ever, and the outcome says so."""
    state = np.array([0, 0], np.uint32)
    host.run(launches.spin(state.ctypes.data, 0.5))
    assert [0, 2] == state.tolist()


def test_the_spin_waits_for_the_host(host: Host) -> None:
    """Let go while it spins, it ends as let go."""
    state = np.array([0, 0], np.uint32)
    runner = threading.Thread(target=host.run, args=(launches.spin(state.ctypes.data, 10_000),))
    runner.start()
    still_spinning = state[1] == 0
    state[0] = 1
    runner.join()
    assert still_spinning
    assert [1, 1] == state.tolist()


def test_a_spin_without_an_end_and_a_flush_of_nothing_are_refused() -> None:
    """No timeout, a timeout of minutes, half a word and no block make no launch."""
    for timeout_ms in (0, -1, 60_000, float("nan")):
        with pytest.raises(UsageError, match="timeout"):
            launches.spin(64, timeout_ms)
    for buffer, size, blocks in ((64, 0, 1), (64, 6, 1), (66, 8, 1), (64, 8, 0)):
        with pytest.raises(UsageError, match="nothing to read"):
            launches.l2_flush(buffer, size, 64, blocks=blocks)
