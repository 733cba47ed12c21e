"""Arguments and options that several commands share, and how their text is read."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="torchvision:NAME, timm:NAME, zoo:NAME, FILE.py:FACTORY or FILE.pt2")]
Data = Annotated[
    str, typer.Option("--data", help="digits, fashion-mnist, imagefolder:DIR, segfolder:DIR or FILE.py:FACTORY")
]
Weights = Annotated[str | None, typer.Option("--weights", help="state dict (.pt, .pth, .safetensors), or 'pretrained'")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout and nothing else")]
Threads = Annotated[int, typer.Option("--threads", help="threads of the engine")]
Device = Annotated[str, typer.Option("--device", help="where the engine runs")]
Runtime = Annotated[str, typer.Option("--runtime", help="what runs the engine: onnxruntime or openvino")]
Precision = Annotated[
    str, typer.Option("--precision", help="what the engine computes in: fp32, int8, or what else the runtime has")
]
Quantile = Annotated[float, typer.Option("--quantile", help="quantile of latency that the budget limits")]
InputShape = Annotated[str, typer.Option("--input", help="shape of one input: channels,height,width")]
Seed = Annotated[int, typer.Option("--seed", help="seed of everything that is drawn")]
NumClasses = Annotated[int | None, typer.Option("--num-classes", help="outputs of the model's head")]
BudgetMs = Annotated[float | None, typer.Option("--budget-ms", help="latency limit in milliseconds")]
Speedup = Annotated[float | None, typer.Option("--speedup", help="limit as a speed-up over the dense engine")]


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
