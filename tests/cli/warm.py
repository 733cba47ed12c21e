"""Loaded once by the server that calls are forked from: torch, and its exporter's own imports."""

from __future__ import annotations

import torch
from torch import nn

import cpd_edge.pipeline
import cpd_edge.pipeline.bench
import cpd_edge.pipeline.verbs  # noqa: F401
from cpd_edge.deploy.onnx import export_onnx
from cpd_edge.network import trace

torch.set_num_threads(1)
export_onnx(trace(nn.Conv2d(1, 1, 1), (1, 2, 2)))
