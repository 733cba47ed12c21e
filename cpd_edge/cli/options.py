"""Arguments and options that several commands share, and how their text is read."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="torchvision:NAME, timm:NAME, zoo:NAME, FILE.py:FACTORY or FILE.pt2")]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="digits, fashion-mnist, imagefolder:DIR (DIR/{train,val}/CLASS, or DIR/CLASS, a fifth of which is val), "
        "segfolder:DIR (DIR/{train,val}/{images,masks}) or FILE.py:FACTORY",
    ),
]
Weights = Annotated[str | None, typer.Option("--weights", help="state dict (.pt, .pth, .safetensors), or 'pretrained'")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout and nothing else")]
Threads = Annotated[int, typer.Option("--threads", help="threads of the engine")]
Device = Annotated[
    str,
    typer.Option(
        "--device", help="where the engine runs: local, simulated (arithmetic, to try things), or one you added"
    ),
]
Runtime = Annotated[
    str,
    typer.Option(
        "--runtime",
        help="what runs the engine: onnxruntime, openvino, onnxruntime-cuda, onnxruntime-tensorrt or tensorrt",
    ),
]
Precision = Annotated[
    str, typer.Option("--precision", help="what the engine computes in: fp32, int8, or what else the runtime has")
]
PrecisionOrMixed = Annotated[
    str,
    typer.Option(
        "--precision",
        help="what the engine computes in: fp32, int8, or what else the runtime has; mixed: int8 or fp32 is chosen for "
        "each layer together with its width, on the CPU runtimes",
    ),
]
Quantile = Annotated[float, typer.Option("--quantile", help="quantile of latency that the budget limits")]
InputShape = Annotated[str, typer.Option("--input", help="shape of one input: channels,height,width")]
Seed = Annotated[int, typer.Option("--seed", help="seed of everything that is drawn")]
NumClasses = Annotated[int | None, typer.Option("--num-classes", help="outputs of the model's head")]
BudgetMs = Annotated[float | None, typer.Option("--budget-ms", help="latency limit in milliseconds")]
Speedup = Annotated[float | None, typer.Option("--speedup", help="limit as a speed-up over the dense engine")]
MaxMacs = Annotated[float | None, typer.Option("--max-macs", help="most multiply-accumulates of one image")]
MaxParams = Annotated[float | None, typer.Option("--max-params", help="most parameters")]
MaxSizeMb = Annotated[float | None, typer.Option("--max-size-mb", help="largest ONNX file [10^6 bytes]")]
MaxMemoryMb = Annotated[
    float | None, typer.Option("--max-memory-mb", help="most activations alive at once, of one image [10^6 bytes]")
]


def shape(text: str, example: str = "--input 3,224,224") -> tuple[int, ...]:
    """`3,224,224` as a tuple."""
    from cpd_edge.errors import UsageError

    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) < 1 or min(found) < 1:
        raise UsageError(f"input shape {text!r}", hint=f"for example {example}")
    return found


def numbers(text: str | None, example: str) -> tuple[float, ...]:
    """`1.5,2,3` as numbers; nothing where nothing is given."""
    from cpd_edge.errors import UsageError

    try:
        return tuple(float(part) for part in text.split(",")) if text is not None else ()
    except ValueError:
        raise UsageError(f"{text!r} is no list of numbers", hint=f"for example {example}") from None
