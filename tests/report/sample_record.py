"""A made-up run with every key of the record, for tests of the report only: nothing here was measured."""

from __future__ import annotations

from typing import Any

import numpy as np

from cpd_edge.types import Measurement


def interval(estimate: float, half: float, n: int = 1200) -> dict[str, Any]:
    """An interval of `estimate` ± `half`."""
    return {"estimate": estimate, "low": round(estimate - half, 6), "high": round(estimate + half, 6), "n": n}


def layers() -> list[dict[str, Any]]:
    """53 regions of a network shaped like ResNet-50, with times that sum to 0.95 of the total."""
    rng = np.random.default_rng(1)
    rows, width = [], 64
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        mid = 32 * 2**stage
        for block in range(blocks):
            for conv, (c_in, c_out, weight) in enumerate(((width, mid, 1.0), (mid, mid, 2.2), (mid, mid * 4, 1.1)), 1):
                keep = float(rng.uniform(0.45, 0.95)) if conv < 3 else 1.0
                time = weight * float(rng.uniform(0.9, 1.1))
                rows.append(
                    {
                        "name": f"/layer{stage}/layer{stage}.{block}/conv{conv}/Conv",
                        "op": "Conv",
                        "fqn": f"layer{stage}.{block}.conv{conv}.weight",
                        "dense_in": c_in,
                        "dense_out": c_out,
                        "pruned_in": c_in,
                        "pruned_out": int(c_out * keep) // 4 * 4,
                        "dense_ms": time,
                        "pruned_ms": time * keep * float(rng.uniform(0.5, 0.8)),
                        "predicted_ms": time * keep * 0.65,
                    }
                )
            width = mid * 4
    rows.append(
        {
            "name": "/fc/Gemm",
            "op": "Gemm",
            "fqn": "fc.weight",
            "dense_in": 2048,
            "dense_out": 1000,
            "pruned_in": 2048,
            "pruned_out": 1000,
            "dense_ms": 0.3,
            "pruned_ms": 0.31,
            "predicted_ms": 0.3,
        }
    )
    for key, total in (("dense_ms", 22.41 * 0.95), ("pruned_ms", 12.34 * 0.95), ("predicted_ms", 12.21 * 0.95)):
        scale = total / sum(r[key] for r in rows)
        for row in rows:
            row[key] = round(row[key] * scale, 4)
    return rows


def record() -> dict[str, Any]:
    """A finished run that passed."""
    rng = np.random.default_rng(2)
    steps = np.arange(0, 5001, 100)
    predicted = rng.uniform(8, 22, 24)
    return {
        "format": 1,
        "run": "runs/resnet50-12.8ms",
        "command": "cpd-edge prune resnet50 --data imagenette --budget-ms 12.8 --quantile 0.5 --threads 1 --seed 7",
        "created": "2026-11-23T04:41:09Z",
        "version": "0.1.0",
        "request": {
            "model": "resnet50",
            "data": "imagenette",
            "weights": "DEFAULT",
            "budget_ms": 12.8,
            "speedup": None,
            "quantile": 0.5,
            "device": "local",
            "runtime": "onnxruntime",
            "threads": 1,
            "seed": 7,
        },
        "verdict": "PASS",
        "reason": "The upper bound of p50 is inside the budget and within the tolerance of 5 %.",
        "budget_ms": 12.8,
        "quantile": 0.5,
        "tolerance": 0.05,
        "latency_ms": interval(12.34, 0.19),
        "dense_latency_ms": interval(22.41, 0.24),
        "quantiles": {
            "dense": {"p50": interval(22.41, 0.24), "p90": interval(23.31, 0.31), "p99": interval(25.07, 0.62)},
            "pruned": {"p50": interval(12.34, 0.19), "p90": interval(12.96, 0.22), "p99": None},
        },
        "speedup": interval(1.816, 0.021, 40),
        "macs_ratio": 2.41,
        "params_ratio": 2.08,
        "macs": {"dense": 4_089_284_608, "pruned": 1_696_798_592},
        "params": {"dense": 25_557_032, "pruned": 12_287_035},
        "size_bytes": {"dense": 102_146_911, "pruned": 49_107_220},
        "metric": "top1",
        "metric_dense": 0.9312,
        "metric_pruned": 0.9241,
        "metric_intervals": {
            "dense": interval(0.9312, 0.008, 3925),
            "pruned": interval(0.9241, 0.0083, 3925),
            "delta": interval(-0.0071, 0.0031, 3925),
        },
        "worst_classes": [
            {"label": "chain saw", "dense": 0.904, "pruned": 0.868},
            {"label": "gas pump", "dense": 0.897, "pruned": 0.871},
            {"label": "French horn", "dense": 0.931, "pruned": 0.912},
        ],
        "predicted_ms": 12.21,
        "gap": 0.0002,
        "plan": {
            "objective": 0.18342,
            "bound": 0.18339,
            "gap": 0.0002,
            "seconds": 1.82,
            "limit_ms": 12.46,
            "strategy": "milp",
        },
        "rounds": 3,
        "round_log": [
            {
                "round": 1,
                "limit_ms": 12.8,
                "predicted_ms": 12.77,
                "measured": interval(13.42, 0.22),
                "delta_ms": 0.0,
                "verdict": "FAIL",
            },
            {
                "round": 2,
                "limit_ms": 12.1,
                "predicted_ms": 12.08,
                "measured": interval(12.67, 0.21),
                "delta_ms": 0.65,
                "verdict": "INCONCLUSIVE",
            },
            {
                "round": 3,
                "limit_ms": 12.46,
                "predicted_ms": 12.21,
                "measured": interval(12.34, 0.19),
                "delta_ms": 0.31,
                "verdict": "PASS",
            },
        ],
        "seconds": {
            "comb": 6.1,
            "profile": 214.7,
            "score": 18.2,
            "solve": 1.82,
            "distil": 5211.0,
            "deploy": 31.4,
            "bench": 96.3,
        },
        "environment": {
            "device": "local",
            "cpu": "AMD EPYC 7B13",
            "cores": 2,
            "runtime": "onnxruntime 1.23.2",
            "threads": 1,
            "precision": "fp32",
            "shape": "1x3x224x224",
            "governor": "performance",
            "turbo": False,
            "load": 0.12,
            "kernel": "6.1.0-26-cloud-amd64",
            "python": "3.11.2",
            "torch": "2.14.1",
            "protocol": "back-to-back, ABBA blocks",
        },
        "parity": {"max_abs": 3.1e-5, "max_rel": 8.2e-6, "tolerance": 1e-4, "inputs": 16, "agreement": 1.0},
        "layers": layers(),
        "unattributed_ms": {"dense": 1.1205, "pruned": 0.617},
        "profile": {
            "samples": 48,
            "regions": 53,
            "seconds": 214.7,
            "holdout_median_error": 0.017,
            "holdout_p90_error": 0.043,
            "isolated_median_error": 0.263,
            "scatter": [
                {
                    "predicted_ms": float(p),
                    "measured_ms": float(p * rng.normal(1, 0.02)),
                    "isolated_ms": float(p * rng.normal(1.26, 0.03)),
                }
                for p in predicted
            ],
        },
        "groups": [
            {
                "name": f"layer{s}.{b}.conv{c}",
                "units": 32 * 2**s,
                "kept": int(32 * 2**s * rng.uniform(0.4, 0.95)),
                "exact": s < 4,
            }
            for s in range(1, 5)
            for b in range(3)
            for c in (1, 2)
        ],
        "frozen": [
            {
                "axis": "fc.weight:0",
                "units": 1000,
                "reason": "the model's output: its classes",
                "source": "resnet.py:285",
                "params": 2_049_000,
            },
            {
                "axis": "conv1.weight:1",
                "units": 3,
                "reason": "the model's input: its colours",
                "source": "resnet.py:268",
                "params": 9408,
            },
        ],
        "history": [
            {
                "step": int(s),
                "epoch": float(s / 1000),
                "loss": float(0.4 + 1.9 * np.exp(-s / 900) + rng.normal(0, 0.02)),
                "metric": float(0.9241 - 0.3 * np.exp(-s / 800)) if s % 500 == 0 else None,
                "learning_rate": float(0.01 * (1 + np.cos(np.pi * s / 5000)) / 2),
                "predicted_ms": float(max(12.21, 22.0 - s * 0.004)),
            }
            for s in steps
        ],
        "checks": [
            {"name": "pruned equals masked", "passed": True, "detail": "torch.equal on integer weights, 29 groups"},
            {"name": "engine against torch", "passed": True, "detail": "largest difference 3.1e-05, tolerance 0.0001"},
            {"name": "steady", "passed": True, "detail": "first third against last third: no trend"},
            {"name": "governor", "passed": False, "detail": "ondemand on 1 of 2 cores"},
            {"name": "power state", "passed": None, "detail": "not readable without root"},
        ],
        "hashes": {
            "dense.onnx": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "pruned.onnx": "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752",
            "pruned.pt2": "fd61a03af4f77d870fc21e05e7e80678095c92d808cfb3b5c279ee04c74aca13",
        },
        "limits": [
            "Measured back-to-back: with idle gaps between frames the same engine can be slower.",
            "One build and one process: the spread between builds is not in the interval.",
            "Accuracy holds for the evaluation data named here and for no other.",
        ],
    }


def measurement(name: str, median_ms: float, n: int = 1200, outliers: int = 4) -> Measurement:
    """Samples around a median with a right tail and a few far outliers, in 40 blocks of two engines' turns."""
    rng = np.random.default_rng(len(name))
    latency_ms = median_ms * (0.985 + rng.gamma(2.0, 0.009, n))
    latency_ms[rng.choice(n, outliers, replace=False)] *= 1.7
    blocks = np.repeat(np.arange(40), -(-n // 40))[:n]
    turn = 0 if name == "dense" else 1
    inside = np.arange(n) % 30
    starts_ms = (blocks * 2 + turn) * 700 + inside * median_ms
    return Measurement(
        name=name,
        samples_ns=(latency_ms * 1e6).astype(np.int64),
        starts_ns=(starts_ms * 1e6).astype(np.int64),
        blocks=blocks,
        environment={"device": "local"},
        steady=True,
        stop="interval inside target",
        interference=0.42,
    )


def measurements() -> dict[str, Measurement]:
    """Both engines' samples."""
    return {"dense": measurement("dense", 22.41), "pruned": measurement("pruned", 12.34)}
