"""Results as lines of text: what each command prints without `--json`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_GIB = 1 << 30
OUTLYING = "over 3 interquartile ranges off"
BUSY = 20
"""Involuntary context switches a second from which a measurement says that it was disturbed."""


def span(interval: dict[str, Any] | None, unit: str = "ms") -> str:
    """`12.3 ms [12.1, 12.5]`; without an estimate where the samples are too few for the quantile."""
    if not interval:
        return "not measured"
    low, high = interval["low"], interval["high"]
    if high is None or math.isinf(high):
        floor = f"at least {low:.4g} {unit}" if low else "unknown"
        return f"{floor}, above that not supported by n"
    return f"{interval['estimate']:.4g} {unit} [{low:.4g}, {high:.4g}]"


def ratios(r: dict[str, Any]) -> str:
    """What stands beside every speed-up."""
    return f"{r['macs_ratio']:.2f} x fewer MACs and {r['params_ratio']:.2f} x fewer parameters"


def how_known(r: dict[str, Any]) -> str:
    """`measured`, unless the device is simulated."""
    device = r.get("environment", {}).get("device", "")
    return "simulated, not measured" if device.startswith("simulated") else "measured"


def summary(r: dict[str, Any]) -> str:
    """The last lines of `prune`."""
    percent = [f"{r[k]:.4f}" for k in ("metric_dense", "metric_pruned")]
    return "\n".join(
        [
            f"{r['verdict']}: {r['reason']}",
            *checks_line(r),
            f"  latency   p{100 * r['quantile']:g} {span(r['latency_ms'])} against {r['budget_ms']:.4g} ms",
            f"  dense     p{100 * r['quantile']:g} {span(r['dense_latency_ms'])}",
            f"  speed-up  {span(r['speedup'], 'x')} {how_known(r)}, with {ratios(r)}",
            f"  {r['metric']:<9} {percent[0]} dense, {percent[1]} pruned (as deployed)",
            *fp32_line(r),
            *mixture_line(r),
            f"  predicted {r['predicted_ms']:.4g} ms, gap {r['gap']:.2%}, rounds {r['rounds']}",
            f"  report    {Path(r['run']) / 'report.html'}",
        ]
    )


def fp32_line(r: dict[str, Any]) -> list[str]:
    """A line on the dense network in fp32, where the run computes in something else."""
    if "fp32" not in r:
        return []
    before, gain = r["fp32"], span(r["fp32"]["speedup"], "x")
    return [f"  {r['precision']:<9} {gain} over dense fp32: {span(before['latency_ms'])}, {before['metric']:.4f}"]


def mixture_line(r: dict[str, Any]) -> list[str]:
    """A line on which layers are in INT8, where each has its own precision."""
    if "mixture" not in r:
        return []
    names = r["mixture"]["int8"]
    return [f"  mixed     int8 in {len(names)} of {r['mixture']['of']} regions: {', '.join(names) or 'none'}"]


def checks_line(r: dict[str, Any]) -> list[str]:
    """A line that names the checks that failed, if any did."""
    failed = [f"{c['name']} ({c['detail']})" for c in r.get("checks") or () if not c["passed"]]
    return [f"  checks    {len(failed)} of {len(r['checks'])} failed: {'; '.join(failed)}"] if failed else []


def comb_text(r: dict[str, Any]) -> str:
    """Groups and frozen axes as text."""
    widths = [g for g in r["groups"] if not g["depth"]]
    lines = [f"{_of(g['units'], 'unit'):>12}  {'exact  ' if g['exact'] else 'inexact'}  {g['name']}" for g in widths]
    lines += [f"{'a branch':>12}           {g['name']}" for g in r["groups"] if g["depth"]]
    lines += comb_legend([*(g["name"] for g in widths), *(f["axis"] for f in r["frozen"])])
    lines += ["frozen:"] if r["frozen"] else []
    lines += [
        f"{_of(f['units'], 'unit'):>12}  {f['axis']}: {f['reason']}{f' at {where}' if (where := f['source']) else ''}, "
        f"{f['params']:,} parameters"
        for f in r["frozen"]
    ]
    lines.append(
        f"{_of(len(widths), 'group')} and {_of(len(r['groups']) - len(widths), 'branch', 'es')} that can go whole; "
        f"{portion(r['prunable_params_fraction'])} of the parameters can be cut, along at least one of their sides"
    )
    return "\n".join([*lines, *([f"drawing {r['drawing']}"] if "drawing" in r else [])])


def _of(count: int, what: str, ending: str = "s") -> str:
    """`1 unit`, `2 units`."""
    return f"{count} {what}{ending if count != 1 else ''}"


def comb_legend(names: Iterable[str]) -> list[str]:
    """What the words beside groups mean, and what the numbers behind names do where there are some."""
    numbered = any(name.rpartition(":")[2].isdecimal() for name in names)
    more = "; NAME:2 and on: further axes of NAME's parameters, such as heads" if numbered else ""
    return [f"exact: cutting units is the same as ignoring them; inexact: not quite, a statistic runs over them{more}"]


def portion(share: float) -> str:
    """A share in per cent; 100.0 % only where it is all."""
    return f"{min(share, 0.999) if share < 1 else share:.1%}"


def _share(value: float | None) -> str:
    return "not timed" if value is None else f"{value:.1%}"


def profile_text(r: dict[str, Any]) -> str:
    """The table's quality as text."""
    how = "a table measured before; --fresh measures it again" if r["reused"] else f"{how_known(r)} now"
    saved = f", which saved {r['samples_saved']} networks" if r["samples_saved"] else ""
    known = f" ({r['known_regions']} known from other networks{saved})" if r["known_regions"] else ""
    return (
        f"{how}: {r['regions']} regions{known}, {r['samples']} networks, {r['seconds']:.1f} s; "
        f"dense {r['dense_ms']:.4g} ms\n"
        f"held-out plans: median error {r['holdout_median_error']:.1%}, 90 % within {r['holdout_p90_error']:.1%}, "
        f"worst {r['holdout_worst_error']:.1%}; {_share(r['within_5_percent'])} of them within 5 %, "
        f"{_share(r['within_10_percent'])} within 10 %; noise of one measurement {_share(r['noise'])}; "
        f"isolated table {_share(r['isolated_median_error'])}\n{r['table']}"
    )


def profiles_text(r: dict[str, Any]) -> str:
    """One table's quality, or that of each device."""
    if "devices" not in r:
        return profile_text(r)
    said = {
        name: f"{found['error']}: {found['message']}\n  {found['hint']}" if "error" in found else profile_text(found)
        for name, found in r["devices"].items()
    }
    return "\n".join(f"{name}: {text}" for name, text in said.items())


def solve_text(r: dict[str, Any]) -> str:
    """A plan as text."""
    gone = {name: f"gone, with {branch}" for name, branch in r["gone"].items()}
    widths = "\n".join(
        f"  {name:<40} {was:5d} -> {gone.get(name) or now or 'gone'}" for name, (was, now) in r["widths"].items()
    )
    mixed = "".join(line + "\n" for line in mixture_line(r))
    return (
        f"predicted {r['predicted_ms']:.4g} ms for a limit of {r['limit_ms']:.4g} ms; objective {r['objective']:.4g}, "
        f"bound {r['bound']:.4g}, gap {r['gap']:.2%}, {r['seconds']:.2f} s; "
        f"{r['macs_ratio']:.2f} x fewer MACs\n"
        f"{''.join(map(_limit_line, r['limits']))}{mixed}{widths}"
    )


def _limit_line(row: dict[str, Any]) -> str:
    """A resource beside latency: what the plan takes of it."""
    numbers = (
        f"{row[k] / 1e6:.4g} MB" if row["unit"] == "bytes" else f"{row[k]:.4g}" for k in ("used", "limit", "dense")
    )
    return "{}: {} of {} allowed, {} when dense\n".format(row["name"], *numbers)


def strategies_text(r: dict[str, Any]) -> str:
    """Strategies side by side, a block for each budget."""
    lines = [f"dense {r['dense_ms']:.4g} ms on the table; importance by {r['score']}"]
    limit = None
    for row in r["rows"]:
        if row["limit_ms"] != limit:
            limit = row["limit_ms"]
            aim = f", {row['speedup']:g} x faster" if row["speedup"] else ""
            lines += [f"limit {limit:.4g} ms{aim}", _strategy_line("strategy", "objective", "predicted", "measured")]
        if "infeasible" in row:
            lines.append(f"  {row['strategy']:<10}{row['infeasible']}")
            continue
        fewer = f"{row['macs_ratio']:.2f} x fewer MACs"
        measured = span(row["measured_ms"]) if "measured_ms" in row else "not measured"
        speed = f"speed-up {span(row['measured_speedup'], 'x')}, with " if "measured_ms" in row else ""
        proof = f"; gap {row['gap']:.2%}" if row["gap"] is not None else ""
        named = (row["strategy"], f"{row['objective']:.5g}", f"{row['predicted_ms']:.4g} ms", measured)
        lines.append(f"{_strategy_line(*named)}  {speed}{fewer}{proof}")
    return "\n".join(lines)


def _strategy_line(strategy: str, objective: str, predicted: str, measured: str) -> str:
    return f"  {strategy:<10}{objective:>11}{predicted:>12}  {measured:<28}"


def bench_text(r: dict[str, Any]) -> str:
    """A measurement as text."""
    lines = [f"p{100 * r['quantile']:g} {span(r['latency_ms'])} {how_known(r)}, n {r['latency_ms']['n']}: {r['stop']}"]
    lines += ran_lines(r)
    if "speedup" in r:
        lines.append(f"speed-up {span(r['speedup'], 'x')}: {r['outcome']}, with {_work(r['macs_ratio'])}")
        lines += ["  not paired: the two were measured in windows apart"] if not r.get("paired", True) else []
        lines += [f"  forced although {r['forced']}"] if r.get("forced") else []
    lines += stage_lines(r) if "stages" in r else []
    lines += sensor_lines(r) if "energy" in r else []
    if "processes" in r:
        each = ", ".join(f"{p['latency_ms']['estimate']:.4g}" for p in r["processes"])
        lines.append(
            f"  {len(r['processes'])} processes: {each} ms, {r['process_spread']:.1%} apart; the interval spans them"
        )
    lines += load_lines(r["load_ms"]) if "load_ms" in r else []
    lines += doubt_lines(r)
    if "verdict" in r:
        lines.append(f"{r['verdict']} for {r['budget_ms']:.4g} ms")
    return "\n".join(lines)


def _work(ratio: float | None) -> str:
    """MACs of the reference over those of the engine, in words."""
    if ratio is None:
        return "MACs unknown"
    return f"{ratio:.2f} x fewer MACs" if ratio >= 1 else f"{1 / ratio:.2f} x more MACs"


def ran_lines(r: dict[str, Any]) -> list[str]:
    """What ran the engine, so that two lines of numbers are compared only where they may be."""
    at = r.get("environment", {})
    if not {"device", "runtime", "precision", "threads"} <= at.keys():
        return []
    runtime = f"{at['runtime']} {at.get('runtime_version', '')}".strip()
    return [f"  on {at['device']}, {runtime}, {at['precision']}, threads {at['threads']}"]


def sensor_lines(r: dict[str, Any]) -> list[str]:
    """Energy with its scope, or why there is none; what slowed the device down."""
    spent = r["energy"]
    if spent["reason"]:
        lines = [f"energy not measured: {spent['reason']}"]
    else:
        net = "net not known" if spent["net_mj"] is None else f"{spent['net_mj']:.4g} mJ net of idle"
        what = f"{spent['mean_mw'] / 1e3:.3g} W of the {spent['scope']} over {spent['seconds']:.0f} s"
        lines = [f"energy {spent['gross_mj']:.4g} mJ an inference, {net}; {what}"]
    lines += [f"slowed down: {what}" for what in r["throttling"]]
    return [*lines, *(["VOID: the device slowed itself down; let it cool, then measure again"] if r["void"] else [])]


def load_lines(ms: dict[str, float]) -> list[str]:
    """What happens before the first steady inference."""
    return [
        f"  first load {ms['first_load']:.4g} ms, warm load {ms['warm_load']:.4g} ms, "
        f"first inference {ms['first_inference']:.4g} ms"
    ]


def doubt_lines(r: dict[str, Any]) -> list[str]:
    """What speaks against the numbers, in words; nothing where nothing does."""
    outliers, n = r.get("outliers", 0), r["latency_ms"]["n"]
    lines = [] if r.get("steady", True) else unsteady_lines(r)
    lines += [f"  {outliers} of {n} samples are outliers: {OUTLYING}; they count"] if outliers else []
    if (r.get("interference") or 0) >= BUSY:
        lines.append(f"  the CPU was taken away {r['interference']:.0f} times a second: something else is running")
    return lines


def unsteady_lines(r: dict[str, Any]) -> list[str]:
    """What a trend means for the numbers and for the verdict, and what to do."""
    held = f"the interval{' and the verdict' if 'verdict' in r else ''} may not hold at another time"
    paired = (
        "; their ratio does, for both engines had the trend alike" if "speedup" in r and r.get("paired", True) else ""
    )
    return [
        f"  not steady: latency rose or fell while it was measured, so {held}{paired}",
        "    let the machine settle, stop what else runs, then measure again, longer (--limit-s)",
    ]


def stage_lines(r: dict[str, Any]) -> list[str]:
    """The stages of an end-to-end measurement, and their sum beside the whole."""
    rows = [
        f"  {name:<12} {span(stage['latency_ms']):<32} {stage['mean_ms'] / r['mean_ms']:6.1%} of the mean"
        for name, stage in r["stages"].items()
    ]
    whole = f"the whole {r['latency_ms']['estimate']:.4g} ms"
    return [
        *rows,
        f"  sum {r['stages_sum_ms']:.4g} ms, {whole}; {1e3 * r['unattributed_ms']:.3g} us of the mean in no stage",
        f"  frame {r['frame']}; {r['ran_by']}",
    ]


def doctor_text(r: dict[str, Any]) -> str:
    """The doctor's findings as text: what there is, what is missing, what this machine can tell apart."""
    runtimes = [
        f"{name:<16} {found['version'] or 'not installed: ' + found['install']}"
        for name, found in r["runtimes"].items()
    ]
    packages = [
        f"{name:<16} {version or 'not installed: ' + r['missing'][name]}" for name, version in r["packages"].items()
    ]
    load = "unknown" if r["load_1m"] is None else f"{r['load_1m']:.2f}"
    cores = f"cores {', '.join(map(str, r['pinned']))}" if r["pinned"] else "all cores"
    parts = {
        "python": [f"{r['python']} on {r['platform']}"],
        "device": [f"{r['device']}, {cores}"],
        "state": [f"governor {r['governor']}, turbo {r['turbo']}, load {load}"],
        "runtimes": runtimes,
        "packages": packages,
        "noise": noise_lines(r["aa"]),
        "warnings": r["warnings"] or ["none"],
    }
    lines = [(name if not i else "", line) for name, rows in parts.items() for i, line in enumerate(rows)]
    return "\n".join(f"{name:<10}{line}" for name, line in lines)


def doctor_there_text(r: dict[str, Any]) -> str:
    """What the doctor found on another device: what it is, and what it can tell apart."""
    rows = [("noise", noise_lines(r["aa"], "there")), ("warnings", r["warnings"] or ["none"])]
    lines = [(name if not i else "", line) for name, found in rows for i, line in enumerate(found)]
    return "\n".join([probe_text(r), *(f"{name:<12} {line}" for name, line in lines)])


def probe_text(found: dict[str, Any]) -> str:
    """What a person wants to know before measuring there."""
    runtimes, lock = found["runtimes"], found["lock"]
    state = [found[key] for key in ("power_mode", "clocks", "governor") if found[key] not in ("", "unknown")]
    rows = {
        "device": f"{found['device']}, {found['machine']}, {found['cores']} cores",
        "described": _described(found["description"]),
        "system": f"{found['os']} {found['kernel']}" + (f", L4T {found['l4t']}" if found["l4t"] else ""),
        "state": ", ".join(state) or "says nothing of power mode, clocks or governor",
        "memory": f"{found['memory_available_bytes'] / _GIB:.1f} of {found['memory_bytes'] / _GIB:.1f} GiB available",
        "disk": f"{found['disk_free_bytes'] / _GIB:.1f} GiB free in {found['folder']}",
        "python": f"{found['python']}, measures with {found['measures_with']}",
        **{name: runtimes.get(name) or "not installed there" for name in ("onnxruntime", "tensorrt", "numpy")},
        "power rails": ", ".join(row[1] or row[0] for row in found["sensors"]["rails"]) or "none readable",
        "in use": "no" if lock is None else f"by {lock['holder']} since {lock['since']}",
    }
    return "\n".join(f"{label:<12} {text}" for label, text in rows.items())


def _described(name: str | None) -> str:
    """What public documents say of such a device, briefly."""
    if name is None:
        return "in no file of profiles/devices"
    from cpd_edge.measure.descriptions import description

    found = description(name)
    facts = [found.arch, f"{found.dla_cores} DLA cores" if found.dla_cores else None, found.memory_type]
    rails = f"total of {' + '.join(found.total_rails)} is {found.total_scope}" if found.total_rails else None
    return ", ".join([f"{name}.json", *(fact for fact in (*facts, rails) if fact)])


def gpu_text(r: dict[str, Any]) -> str:
    """What `doctor --gpu` found: one line a check, with the reason where it did not pass."""
    lines = [f"{c['state']:<13} {c['name']:<26} {c['reason'] or c['proves']}" for c in r["checks"]]
    return "\n".join([*lines, f"all of it is in {r['file']}: see docs/gpu-checklist.md for where to send it"])


def noise_lines(aa: dict[str, Any] | None, where: str = "on this machine") -> list[str]:
    """An engine against itself, in words."""
    if aa is None:
        return [f"not measured: no runtime for it {where}"]
    ratio = {"estimate": aa["ratio"], "low": aa["ratio_low"], "high": aa["ratio_high"]}
    counts = f"{aa['samples']} samples, {aa['outliers']} outliers ({OUTLYING}; they count)"
    return [
        f"an engine on {aa['runtime']} against itself is {aa['outcome']}: {span(ratio, 'x')}",
        f"median {aa['median_ms']:.4g} ms ± {aa['spread_percent']:.2g} %, {counts}",
        f"a difference of {aa['detectable_percent']:.2g} % or more shows {where} now",
    ]


def sweep_text(r: dict[str, Any]) -> str:
    """A sweep's points as text, the widest budget first."""
    lines = [
        f"  {'dense':>8}  {'':<12} {span(p.get('dense_latency_ms'))}, {p['metric']} {p['metric_dense']:.4f}"
        for p in r["points"]
        if p["latency_ms"] is not None
    ][:1]
    for p in r["points"]:
        mark = "*" if p["front"] else " "
        if p["latency_ms"] is None:
            lines.append(f"{mark} {p['point']:>8}  {p['verdict']:<12} {p['reason']}")
            continue
        lines.append(
            f"{mark} {p['point']:>8}  {p['verdict']:<12} {span(p['latency_ms'])}, speed-up {span(p['speedup'], 'x')} "
            f"with {ratios(p)}, {p['metric']} {p['metric_pruned']:.4f} (dense {p['metric_dense']:.4f})"
        )
        lines += [f"            VOID: {what}" for what in p.get("void") or ()]
        lines += [f"          {line}" for line in checks_line(p)]
    return "\n".join([*lines, f"{r['verdict']}: the worst of {len(r['points'])} budgets; * is on the front",
                      f"report    {Path(r['sweep']) / 'sweep.html'}"])  # fmt: skip


def tables_text(r: dict[str, Any]) -> str:
    """The stored tables as text, one a line."""
    lines = [
        f"{t['device']}, {t['runtime']} {t['runtime_version']}, {t['precision']}, {t['threads']} threads: "
        f"{t['signature']}, {t['regions']} regions, {t['samples']} networks, "
        f"held-out median error {_share(t['holdout_median_error'])}  {t['folder']}"
        for t in r["tables"]
    ]
    old = [f"of another version's format, measured again where it is wanted: {folder}" for folder in r["outdated"]]
    return "\n".join([*lines, *old, f"{len(lines)} tables under {r['profiles']}"])


def exchange_text(r: dict[str, Any]) -> str:
    """What was exported or imported."""
    new = f", {r['new_samples']} samples new here" if "new_samples" in r else ""
    return f"{r['file']}: {r['tables']} tables, {r['rows']} rows{new}"
