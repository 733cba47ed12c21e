"""Every source compiles for every architecture, and what it takes of a GPU is what was recorded."""

from __future__ import annotations

import os
import struct
from functools import cache
from pathlib import Path

import pytest

from cpd_edge.bundled import bundled
from cpd_edge.errors import CpdError, RuntimeMissing, UsageError
from cpd_edge.kernels import ARCHITECTURES, FUNCTIONS, Cubin, cached_cubin, compile_cubin, cubin, nvrtc, sources
from cpd_edge.kernels.__main__ import main
from cpd_edge.kernels.cubin import parse_usage
from cpd_edge.kernels.table import csv_text, recorded_rows, rows_of

BLOCK = {"preprocess": 256, "segmentation": 256, "topk": 256, "timing": 256}
SMALLEST_REGISTER_FILE = 32768
"""32-bit registers that one block may hold on sm_53 and sm_62; the others have twice as many."""


def compiled(name: str, arch: str, cuda: int | None = None) -> Cubin:
    """A cubin by the oldest compiler, or by that of a CUDA version, made once a session."""
    try:
        return _compiled(name, arch, nvrtc.compiler_for(arch, cuda).version[0])
    except RuntimeMissing as error:
        pytest.skip(str(error))


@cache
def _compiled(name: str, arch: str, cuda: int) -> Cubin:
    return compile_cubin(name, arch, cuda=cuda)


def registers_in(elf: bytes) -> dict[str, int]:
    """Register count of each function as the cubin's own `.nv.info` has it (attribute 0x2f: symbol, count)."""
    at, size, count, names_in = struct.unpack_from("<40xQ10xHHH", elf, 0)[:1] + struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, at + size * i) for i in range(count)]

    def text(table: int, offset: int) -> str:
        start = headers[table][4] + offset
        return elf[start : elf.index(b"\0", start)].decode()

    sections = {text(names_in, header[0]): header for header in headers}
    info, symbols = sections[".nv.info"], sections[".symtab"]
    found, place, end = {}, info[4], info[4] + info[5]
    while place < end:
        form, attribute, length = struct.unpack_from("<BBH", elf, place)
        if (form, attribute) == (4, 0x2F):
            symbol, registers = struct.unpack_from("<II", elf, place + 4)
            (name,) = struct.unpack_from("<I", elf, symbols[4] + 24 * symbol)
            found[text(symbols[6], name)] = registers
        place += 4 + (length if form == 4 else 0)
    return found


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_source_compiles_for_every_architecture(name: str, arch: str) -> None:
    """The result is a cubin for that architecture, with every function, no spills, and blocks that fit."""
    made = compiled(name, arch)
    assert b"\x7fELF" == made.data[:4]
    (flags,) = struct.unpack_from("<I", made.data, 48)
    assert int(arch[3:]) == (flags >> 8 & 0xFF if made.data[7] == 0x41 else flags & 0xFF)
    assert FUNCTIONS[name] == tuple(use.function for use in made.usage)
    assert {0} == {use.spill_store_bytes + use.spill_load_bytes + use.stack_bytes for use in made.usage}
    assert max(use.registers for use in made.usage) * BLOCK[name] <= SMALLEST_REGISTER_FILE


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_log_tells_the_registers_that_the_cubin_has(arch: str) -> None:
    """What was read from ptxas's words is what stands in the cubin."""
    made = compiled("preprocess", arch)
    assert {use.function: use.registers for use in made.usage} == registers_in(made.data)


@pytest.mark.parametrize("arch", ["sm_75", "sm_86", "sm_87", "sm_89", "sm_120"])
def test_the_newer_compiler_takes_them_too(arch: str) -> None:
    """Where NVRTC 12.9 and 13 both know an architecture, both compile every source, for either driver."""
    assert {13} == {compiled(name, arch, cuda=13).cuda for name in FUNCTIONS}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_recorded_table_is_what_compiles(arch: str) -> None:
    """`kernels/registers.csv` holds exactly what its compiler makes of the sources as they are."""
    recorded = [row for row in recorded_rows() if row.arch == arch]
    assert len(recorded) == sum(map(len, FUNCTIONS.values()))
    (release,) = {row.compiler for row in recorded}
    cubins = [compiled(name, arch, cuda=int(release.partition(".")[0])) for name in FUNCTIONS]
    if cubins[0].compiler != release:
        pytest.skip(f"recorded with NVRTC {release}, here is {cubins[0].compiler}")
    assert csv_text(recorded) == csv_text(row for made in cubins for row in rows_of(made))


def test_the_oldest_compiler_that_knows_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cubin of an older compiler loads on older drivers too, so the oldest is taken unless another is asked for."""
    old, new = (nvrtc.Compiler((v, 0), f"{v}.0", ("sm_87", f"sm_{v}"), Path(f"lib{v}.so")) for v in (12, 13))
    monkeypatch.setattr(nvrtc, "compilers", lambda: (old, new))
    assert [old, new, new] == [nvrtc.compiler_for(*wanted) for wanted in (("sm_87",), ("sm_87", 13), ("sm_13",))]


def test_a_missing_compiler_is_named_with_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what knows the architecture, what was found, and what to install."""
    monkeypatch.setattr(nvrtc, "compilers", lambda: ())
    with pytest.raises(RuntimeMissing, match=r"no NVRTC here compiles for sm_53; found: none(.|\n)*cu12==12\.9"):
        compile_cubin("topk", "sm_53")
    with pytest.raises(RuntimeMissing, match=r"no NVRTC 11 here(.|\n)*cu11==11\.8"):
        compile_cubin("topk", "sm_53", cuda=11)


def test_a_library_that_is_no_compiler_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged file beside the good ones neither stops nor crashes the search."""
    folder = tmp_path / "nvidia/broken/lib"
    folder.mkdir(parents=True)
    (folder / "libnvrtc.so.12").write_bytes(b"no library")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.setattr(nvrtc, "_TOOLKITS", ())
    nvrtc.compilers.cache_clear()
    try:
        assert () == nvrtc.compilers()
    finally:
        nvrtc.compilers.cache_clear()


@pytest.mark.parametrize(
    ("name", "arch", "says"),
    [
        ("resize", "sm_87", "there are preprocess, segmentation, topk, timing"),
        ("argmax_f16", "sm_87", "the function argmax_f16 is in the source 'segmentation'"),
        ("topk", "87", "write it as sm_87"),
        ("topk", "compute_87", "write it as sm_87"),
        ("../topk", "sm_87", "there are"),
    ],
)
def test_what_is_not_there_is_refused(name: str, arch: str, says: str) -> None:
    """A wrong source or architecture is answered with the right ones."""
    with pytest.raises(UsageError, match=says):
        compile_cubin(name, arch)


def test_a_source_that_does_not_compile_shows_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler's own message, with file and line, stands in the error."""
    for path in bundled("kernels").glob("*.cu*"):
        (tmp_path / path.name).write_text(path.read_text() + ("\nbroken here;\n" if path.stem == "topk" else ""))
    monkeypatch.setattr(sources, "bundled", lambda name: tmp_path)
    with pytest.raises(UsageError, match=r"cannot compile topk\.cu for sm_87:\n(.|\n)*topk\.cu\(\d+\): error"):
        compile_cubin("topk", "sm_87")


def test_a_log_of_another_format_is_no_zero() -> None:
    """A function that the log does not speak of is an error, not one without spills."""
    with pytest.raises(CpdError, match="says nothing of spin"):
        parse_usage("ptxas info    : Compiling entry function 'spin' for 'sm_87'\nsome new words\n", ("spin",))


def test_a_cubin_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time it comes from the folder, equal in every field; a damaged one is made again."""
    first = cached_cubin("topk", "sm_87", folder=tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(cubin, "compile_text", None)
        assert first == cached_cubin("topk", "sm_87", folder=tmp_path)
    (path,) = tmp_path.glob("*.cubin")
    for damage in (first.data[:-1], b"", first.data.replace(b"topk", b"kpot")):
        path.write_bytes(damage)
        assert first == cached_cubin("topk", "sm_87", folder=tmp_path)
    path.with_suffix(".json").write_text('{"sha256": 3}')
    assert first == cached_cubin("topk", "sm_87", folder=tmp_path)
    assert 2 == len(os.listdir(tmp_path))


def test_a_changed_source_is_another_cubin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that changed makes a new file; architecture and source have their own."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for path in bundled("kernels").glob("*.cu*"):
        (folder / path.name).write_text(path.read_text())
    cached_cubin("timing", "sm_87", folder=tmp_path)
    monkeypatch.setattr(sources, "bundled", lambda name: folder)
    cached_cubin("timing", "sm_87", folder=tmp_path)
    (folder / "edge.cuh").write_text((folder / "edge.cuh").read_text() + "// another\n")
    cached_cubin("timing", "sm_87", folder=tmp_path)
    cached_cubin("timing", "sm_86", folder=tmp_path)
    assert 3 == len(list(tmp_path.glob("*.cubin")))


def test_the_command_prints_the_table_and_writes_cubins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m cpd_edge.kernels --cubins DIR --arch A` leaves one file a source."""
    assert 0 == main(["--cubins", str(tmp_path), "--arch", "sm_87"])
    assert {f"{name}-sm_87.cubin" for name in FUNCTIONS} == set(os.listdir(tmp_path))
    assert "preprocess-sm_87.cubin" in capsys.readouterr().out


def test_an_installation_without_sources_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel that came without the folder is an error that names both places and what to type."""
    monkeypatch.setitem(bundled.__globals__["_PLACES"], "kernels", (Path("none/_kernels"), Path("none/kernels")))
    with pytest.raises(RuntimeMissing, match=r"has no kernels(.|\n)*pip install"):
        compile_cubin("topk", "sm_87")
