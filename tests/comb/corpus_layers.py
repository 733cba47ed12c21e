"""Cases around what sums dims away: convolutions, products, attention, recurrent cells, and around statistics."""

# ruff: noqa: E501

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from corpus import case, conv, par, total
from torch import Tensor
from torch.nn import (
    GRU,
    LSTM,
    RNN,
    BatchNorm1d,
    BatchNorm2d,
    Bilinear,
    Conv1d,
    Conv3d,
    GroupNorm,
    GRUCell,
    InstanceNorm2d,
    LayerNorm,
    Linear,
    LSTMCell,
    MultiheadAttention,
    RMSNorm,
    RNNCell,
)
from torch.nn.utils.parametrizations import weight_norm

aten = torch.ops.aten
IMAGE = (3, 4, 4)

# fmt: off
case("grouped convolutions", IMAGE, "a:4 a:2:2 b:3 d:5",
     lambda m, x: m.head(total(m.d(m.b(m.a(x))))),
     a=conv(3, 8), b=conv(8, 12, 3, groups=4, padding=1), d=conv(12, 5), head=Linear(5, 2))
case("depthwise convolutions", IMAGE, "a:4 b:2",
     lambda m, x: m.head(total(F.relu(m.b(m.a(x))))),
     a=conv(3, 4), b=conv(4, 8, 3, groups=4, padding="same"), head=Linear(8, 2))
case("convolutions of one and three dims", (2, 3, 4, 4), "a:6 b:5",
     lambda m, x: m.head(m.b(m.a(x).flatten(2)).sum(2)),
     a=Conv3d(2, 6, 3, padding=1), b=Conv1d(6, 5, 1), head=Linear(5, 2))
case("transposed convolutions", IMAGE, "w:2 w:2:4 w:3:3 u:5",
     lambda m, x: m.head(F.conv_transpose2d(F.conv_transpose2d(m.a(x), m.w, m.z, groups=2), m.u).sum((2, 3))),
     a=conv(3, 8), w=par(8, 3, 2, 2), z=par(6), u=par(6, 5, 1, 1), head=Linear(5, 2))
case("transposed convolutions of one and three dims", (3, 6), "a:4 b:5",
     lambda m, x: m.head(F.conv_transpose3d(F.conv_transpose1d(x, m.a)[:, :, :, None, None], m.b).sum((2, 3, 4))),
     a=par(3, 4, 2), b=par(4, 5, 1, 1, 1), head=Linear(5, 2))
case("convolutions as an exporter writes them", IMAGE, "w:2 w:2:4 w:3:3 u:5 v:4 cv:3",
     lambda m, x: m.head(written(written(written(written(m.a(x), m.w, m.z, True, 2), m.u, None, True)
                                         .flatten(2), m.v, None, True), m.cv, None, False).sum(2)),
     a=conv(3, 8), w=par(8, 3, 2, 2), z=par(6), u=par(6, 5, 1, 1), v=par(5, 4, 2), cv=par(3, 4, 2), head=Linear(3, 2))
case("a kernel of one with a stride over space that a layer makes", (5,), "up:2 cv:4",
     lambda m, x: m.head(m.cv(m.up(x).view(-1, 2, 3, 3)).flatten(1)),
     up=Linear(5, 18), cv=conv(2, 4, 1, stride=2, padding=1), head=Linear(36, 2))
case("linear layers", (5, 3), "a:6 v:4",
     lambda m, x: m.head(F.linear(m.a(x), m.w) * F.linear(F.linear(x, m.v, m.z), m.u).mean(1)[:, :5]),
     a=Linear(3, 6), w=par(6), v=par(4, 3), z=par(4), u=par(5, 4), head=Linear(5, 2))
case("bilinear", (4,), "a:5 b:6 n:7",
     lambda m, x: m.head(m.n(m.a(x), m.b(x))), a=Linear(4, 5), b=Linear(4, 6), n=Bilinear(5, 6, 7), head=Linear(7, 2))
case("matrix products", (5, 3), "u:4 u:2:3 v:7 a:6",
     lambda m, x: m.head(torch.bmm(m.a(x).mT, m.b(x)).matmul(torch.mm(m.u, m.v)).sum(1)),
     a=Linear(3, 6), b=Linear(3, 4), u=par(4, 3), v=par(3, 7), head=Linear(7, 2))
case("products with vectors", (5, 6), "a:4 v:2 w:2:3",
     lambda m, x: m.head(m.a(x) @ m.v[:4] * aten.mv(m.w, m.u)) + aten.dot(m.u, m.u) + aten.vdot(m.v, m.v),
     a=Linear(6, 4), v=par(6), w=par(5, 3), u=par(3), head=Linear(5, 2))
case("sums with products", (5, 3), "a:4 w:6 v:7",
     lambda m, x: m.head(torch.baddbmm(m.z, torch.addmm(m.y, m.a(x).flatten(0, 1), m.w, alpha=2).unflatten(0, (-1, 5)), m.v.expand(x.shape[0], -1, -1)).sum(1)),
     a=Linear(3, 4), w=par(4, 6), y=par(6), v=par(1, 6, 7), z=par(1, 5, 7), head=Linear(7, 2))
case("a sum of products over the batch", (5, 3), "",
     lambda m, x: m.head(x.sum(1)) + torch.addbmm(m.z, m.a, m.b).sum(), a=par(4, 5, 3), b=par(4, 3, 6), z=par(5, 6), head=Linear(3, 2))
case("outer products", (5,), "u:4 v:6",
     lambda m, x: m.head((torch.outer(m.u, m.v) @ m.a(x).unsqueeze(-1) + aten.ger(m.u, m.u).sum()).squeeze(-1)),
     a=Linear(5, 6), u=par(4), v=par(6), head=Linear(4, 2))
case("products over chosen dims", (5, 4), "a:6 w:4 v:7",
     lambda m, x: m.head(torch.inner(torch.tensordot(m.a(x), m.w, dims=([2, 1], [1, 0])), m.v) * torch.addmv(m.z, m.v, m.y)),
     a=Linear(4, 6), w=par(5, 6, 4), v=par(7, 4), z=par(7), y=par(4), head=Linear(7, 2))
case("einsum of experts", (4,), "w:3~ w:2:6 v:5",
     lambda m, x: m.head(torch.einsum("be,beo->bo", m.g(x).softmax(-1), torch.einsum("beh,eho->beo", F.relu(torch.einsum("bi,eih->beh", x, m.w)), m.v))),
     g=Linear(4, 3), w=par(3, 4, 6), v=par(3, 6, 5), head=Linear(5, 2))
case("einsum with dots and stretched letters", (5, 3), "a:6 w:4 u:5 u:2:4",
     lambda m, x: m.head(torch.einsum("...i,ij->...j", m.a(x), m.w).sum(1)) + torch.einsum("bi,ci->b", m.one(x[:, 0]), m.u).unsqueeze(1) + torch.einsum("...i->i", m.v),
     a=Linear(3, 6), w=par(6, 4), one=Linear(3, 1), u=par(5, 4), v=par(3, 4, 2), head=Linear(4, 2))
case("attention", (5, 8), "mask:3 q:2 v:4",
     lambda m, x: m.head(F.scaled_dot_product_attention(heads(m.q(x), 3), heads(m.k(x), 3), heads(m.v(x), 3), m.mask).transpose(1, 2).flatten(2).sum(1)),
     q=Linear(8, 6), k=Linear(8, 6), v=Linear(8, 12), mask=par(3, 1, 5), head=Linear(12, 2))
case("causal attention of learned queries", (5, 4), "q:2:4 v:4",
     lambda m, x: m.head(F.scaled_dot_product_attention(m.q.expand(x.shape[0], -1, -1), m.k(x), m.v(x), is_causal=True).sum(1)),
     q=par(1, 6, 4), k=Linear(4, 4), v=Linear(4, 4), head=Linear(4, 2))
case("attention of learned queries", (5, 4), "q:6 q:2:4 t:7~ v:4",
     lambda m, x: m.head(F.scaled_dot_product_attention(m.q.expand(x.shape[0], -1, -1), m.k(attended(m, x)), m.v(attended(m, x))).sum(1)),
     q=par(1, 6, 4), t=par(7, 4), k=Linear(4, 4), v=Linear(4, 4), head=Linear(4, 2))
case("packed attention", (5, 8), "a:8 att:2 att:2:4 att:3:4 att.out_proj:8",
     lambda m, x: m.head(m.att(m.a(x), m.a(x), m.a(x), need_weights=False)[0].sum(1)),
     a=Linear(8, 8), att=MultiheadAttention(8, 2, batch_first=True), head=Linear(8, 2))
case("a recurrent cell", (3, 4), "a:3 n:6",
     lambda m, x: m.head(m.n(m.a(x))[0].flatten(1)), a=Linear(4, 3), n=RNN(3, 6, batch_first=True, bidirectional=True), head=Linear(36, 2))
case("rectified cells in two layers, time first", (2, 4), "n:6",
     lambda m, x: m.head(m.n(x.transpose(0, 1))[0].sum(0)), n=RNN(4, 6, num_layers=2, nonlinearity="relu", bias=False), head=Linear(6, 2))
case("gated cells", (2, 4), "n:2:6 o:2:5",
     lambda m, x: m.head(m.o(m.n(x)[0])[1].sum(0)), n=GRU(4, 6, bidirectional=True, batch_first=True), o=GRU(12, 5, batch_first=True), head=Linear(5, 2))
case("cells that begin with learned states, over steps that a layer makes", (3, 4), "h:2:6",
     lambda m, x: m.head(m.n(m.mix(x.mT).mT, tuple(s.expand(-1, x.shape[0], -1).contiguous() for s in (m.h, m.s)))[1][1].sum(0)),
     mix=Linear(3, 4), h=par(2, 1, 6), s=par(2, 1, 6), n=LSTM(4, 6, num_layers=2, batch_first=True), head=Linear(6, 2))
case("cells of one step", (4,), "h:2:6 g:2:5 r:4 q:3",
     lambda m, x: m.head(m.q(m.r(m.g(m.h(x)[1])))), h=LSTMCell(4, 6), g=GRUCell(6, 5), r=RNNCell(5, 4, bias=False), q=RNNCell(4, 3, nonlinearity="relu"), head=Linear(3, 2))
case("a projected cell", (2, 4), "",
     lambda m, x: m.head(m.n(x)[0].sum(1)), n=LSTM(4, 6, proj_size=3, batch_first=True), head=Linear(3, 2))
case("batch norms", IMAGE, "a:6 b:4",
     lambda m, x: m.head(m.q(m.b(m.p(m.n(m.a(x))).flatten(2))).sum(2)),
     a=conv(3, 6), n=BatchNorm2d(6), p=InstanceNorm2d(6, affine=True, track_running_stats=True), b=Conv1d(6, 4, 1), q=BatchNorm1d(4), head=Linear(4, 2))
case("standardised weights", IMAGE, "b:5 b:2:6~",
     lambda m, x: m.head(total(F.conv2d(m.a(x), F.batch_norm(m.b.reshape(1, 5, -1), None, None, training=True).reshape_as(m.b)))),
     a=conv(3, 6), b=par(5, 6, 1, 1), head=Linear(5, 2))
case("lowered batch norms", IMAGE, "w:6",
     lambda m, x: m.head(total(aten._native_batch_norm_legit_no_training(aten.native_batch_norm(m.a(x), m.w, m.b, m.u, m.running_var, False, 0.1, 1e-3)[0], m.w, m.b, m.u, m.running_var, 0.1, 1e-3)[0])),
     a=conv(3, 6), w=par(6), b=par(6), u=torch.zeros(6), running_var=torch.ones(6), head=Linear(6, 2))
case("a lowered batch norm of a batch", IMAGE, "w:6",
     lambda m, x: m.head(total(aten._native_batch_norm_legit(m.a(x), m.w, m.b, m.u.clone(), m.running_var.clone(), False, 0.1, 1e-3)[0])),
     a=conv(3, 6), w=par(6), b=par(6), u=torch.zeros(6), running_var=torch.ones(6), head=Linear(6, 2))
case("layer norms", (5, 4), "w:7~ a:6~",
     lambda m, x: m.head(aten.native_layer_norm(m.k(m.b(m.n(m.a(x)))), [7], m.w, m.z, 1e-3)[0].sum(1)),
     a=Linear(4, 6), n=LayerNorm((5, 6)), b=Linear(6, 7), k=RMSNorm(7), w=par(7), z=par(7), head=Linear(7, 2))
case("group norms", IMAGE, "a:2 a:2:4~ b:6 d:5~",
     lambda m, x: m.head(total(m.r(m.d(m.q(m.b(m.n(m.a(x)))))))),
     a=conv(3, 8), n=GroupNorm(2, 8), b=conv(8, 6), q=GroupNorm(6, 6), d=conv(6, 5), r=GroupNorm(1, 5, affine=False), head=Linear(5, 2))
case("softmaxes", IMAGE, "a:6~ b:4 d:5",
     lambda m, x: m.head(total(aten._softmax(m.a(x), -3, False)).sum(1, keepdim=True) + total(aten._log_softmax(m.b(x), -1, False) + m.b(x).log_softmax(2)).sum(1, keepdim=True) + m.d(x).softmax(3).logsumexp((-1, -2))), reads="linear sum _softmax",
     a=conv(3, 6), b=conv(3, 4), d=conv(3, 5), head=Linear(5, 2))
case("log of sums over channels", IMAGE, "a:6~ b:4",
     lambda m, x: m.head(total(m.b(x) * m.a(x).logsumexp(1, keepdim=True) * m.a(x).logsumexp(1).unsqueeze(1))), a=conv(3, 6), b=conv(3, 4), head=Linear(4, 2))
case("sums over channels", IMAGE, "a:6 b:4",
     lambda m, x: m.head(total(m.b(x) * (m.a(x).sum(-3, keepdim=True) + nansum(m.a(x)) + m.a(x).norm(2, 1, True) + torch.linalg.vector_norm(m.a(x), 3, 1).unsqueeze(1) + aten.count_nonzero(m.a(x), [1]).unsqueeze(1)))),
     a=conv(3, 6), b=conv(3, 4), head=Linear(4, 2))
case("statistics over channels", IMAGE, "a:6~ b:4",
     lambda m, x: m.head(total(m.b(x) * sum(f(m.a(x)) for f in (mean, aten.nanmean, *SPREADS)) * m.a(x).prod(-3, keepdim=True) + torch.linalg.vector_norm(m.a(x), torch.inf, 1, True))),
     a=conv(3, 6), b=conv(3, 4), head=Linear(4, 2))
case("statistics over space", IMAGE, "a:6",
     lambda m, x: m.head(m.a(x).amax((-1, -2)) + m.a(x).amin((2, 3)) + m.a(x).var((2, 3)) + m.a(x).flatten(2).max(-1)[0] + m.a(x).flatten(2).median(-1)[0] + F.normalize(m.a(x), dim=1).mean((2, 3))),
     a=conv(3, 6), head=Linear(6, 2))
case("vectors compared", (5, 4), "a:6 v:3 v:2:7 d:5~ e:8~",
     lambda m, x: m.head((F.cosine_similarity(m.a(x), m.u, dim=-1) + F.cosine_similarity(m.a(x), m.a(x) + 1, dim=2) + torch.cdist(m.b(x), m.v.expand(x.shape[0], -1, -1)).sum(2) + F.pairwise_distance(m.d(x), m.w)) + m.e(x).aminmax(dim=2)[1] + torch.linalg.norm(m.a(x), dim=2)),
     a=Linear(4, 6), u=par(6), b=Linear(4, 7), v=par(3, 7), d=Linear(4, 5), w=par(5), e=Linear(4, 8), head=Linear(5, 2))
case("places of the largest", (5, 4), "b:6",
     lambda m, x: m.head(m.b(x).sum(1)) + (m.a(x).argmax(1).sum(-1) + m.a(x).argmin(1).sum(-1) + (m.a(x) > 0).any(1).sum(-1) + (m.a(x) > 0).all(2).sum(-1) + m.d(x).max(2)[1].sum(1)).unsqueeze(1).to(x.dtype),
     a=Linear(4, 5), b=Linear(4, 6), d=Linear(4, 3), head=Linear(6, 2))
case("maxout", IMAGE, "a:6", lambda m, x: m.head(total(m.a(x).view(x.shape[0], 6, 2, 4, 4).max(dim=2)[0])), a=conv(3, 12), head=Linear(6, 2))
case("the larger of two", IMAGE, "s:6", lambda m, x: m.head(total(torch.max(m.a(x), m.b(x)) + torch.min(m.a(x), m.s.view(-1, 1, 1)))),
     a=conv(3, 6), b=conv(3, 6), s=par(6), head=Linear(6, 2))
case("poolings", IMAGE, "a:6",
     lambda m, x: m.head(sum(total(f(m.a(x))) for f in POOLS)), a=conv(3, 6), head=Linear(6, 2))
case("poolings over channels", IMAGE, "", lambda m, x: m.head(F.max_pool1d(m.a(x).flatten(2).mT, 2).mT.sum(2)), a=conv(3, 6), head=Linear(3, 2))
case("unpooled", IMAGE, "a:6 b:5",
     lambda m, x: m.head(total(m.b(unpooled(m.a(x)))) + total(m.b(unpooled(m.a(x).unsqueeze(-1)).squeeze(-1)))), a=conv(3, 6), b=conv(6, 5, 3), head=Linear(5, 2))
case("sampled along a grid", IMAGE, "g:5 g:2:3 a:6",
     lambda m, x: m.head(F.grid_sample(m.a(x), m.g.expand(x.shape[0], -1, -1, -1), align_corners=False).flatten(1)), a=conv(3, 6), g=par(1, 5, 3, 2), head=Linear(90, 2))
case("sampled along lowered grids", IMAGE, "g:5 g:2:3 u:7 a:6",
     lambda m, x: m.head(aten.grid_sampler_2d(m.a(x), m.g.expand(x.shape[0], -1, -1, -1), 0, 0, False).flatten(1)) + m.d(aten.grid_sampler_3d(x.unsqueeze(-1), m.u.expand(x.shape[0], -1, 2, 2, 3), 0, 0, False).sum((1, 3, 4))),
     a=conv(3, 6), g=par(1, 5, 3, 2), head=Linear(90, 2), u=par(1, 7, 1, 1, 3), d=Linear(7, 2))
case("normed weights", (4,), "a:6", lambda m, x: m.head(m.a(x)), a=weight_norm(Linear(4, 6)), head=weight_norm(Linear(6, 2)))
# fmt: on


def heads(x: Tensor, count: int) -> Tensor:
    """Tokens `[b, n, heads * width]` as `[b, heads, n, width]`."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def written(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, groups: int = 1) -> Tensor:
    one, nothing = [1] * (x.dim() - 2), [0] * (x.dim() - 2)
    return aten.convolution(x, weight, bias, one, nothing, one, transposed, nothing, groups)


def attended(m: Any, x: Tensor) -> Tensor:
    """The input's tokens and learned ones behind each other."""
    return torch.cat([x, m.t.expand(x.shape[0], -1, -1)], 1)


def unpooled(x: Tensor) -> Tensor:
    """Maxima, back at their places `[b, c, h, w]` or `[b, c, h, w, 1]`."""
    if x.dim() == 4:
        return F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)
    return F.max_unpool3d(*F.max_pool3d(x, (2, 2, 1), return_indices=True), (2, 2, 1))


def nansum(x: Tensor) -> Tensor:
    return aten.nansum(x, [1], True)


def mean(x: Tensor) -> Tensor:
    return x.mean(1, keepdim=True)


SPREADS = [
    lambda x: x.var(1, keepdim=True), lambda x: x.std(1, keepdim=True), lambda x: torch.var_mean(x, 1, keepdim=True)[0],
    lambda x: torch.std_mean(x, 1, keepdim=True)[1], lambda x: x.amax(1, keepdim=True), lambda x: x.amin(1).unsqueeze(1),
]  # fmt: skip

POOLS = [
    lambda x: F.max_pool1d(x.flatten(2), 2), lambda x: F.avg_pool1d(x.flatten(2), 2), lambda x: F.adaptive_avg_pool1d(x.flatten(2), 3),
    lambda x: F.adaptive_max_pool1d(x.flatten(2), 3), lambda x: F.max_pool2d(x, 2), lambda x: F.avg_pool2d(x, 2),
    lambda x: F.adaptive_avg_pool2d(x, 1), lambda x: F.adaptive_avg_pool2d(x, 2), lambda x: F.adaptive_max_pool2d(x, 2),
    lambda x: F.max_pool3d(x.unsqueeze(-1), (2, 2, 1)), lambda x: F.avg_pool3d(x.unsqueeze(-1), (2, 2, 1)),
    lambda x: F.adaptive_avg_pool3d(x.unsqueeze(-1), 1), lambda x: F.adaptive_max_pool3d(x.unsqueeze(-1), 1),
    lambda x: F.max_pool1d_with_indices(x.flatten(2), 2)[0], lambda x: aten.max_pool2d_with_indices(x, [2, 2])[0],
    lambda x: aten._adaptive_avg_pool2d(x, [2, 2]),
    lambda x: aten.upsample_nearest1d(x.flatten(2), [6]), lambda x: aten.upsample_linear1d(x.flatten(2), [6], False),
    lambda x: aten.upsample_nearest2d(x, [6, 6]), lambda x: aten.upsample_bilinear2d(x, [6, 6], False),
    lambda x: aten.upsample_bicubic2d(x, [6, 6], False), lambda x: aten._upsample_nearest_exact2d(x, [6, 6]),
    lambda x: aten._upsample_bilinear2d_aa(x, [3, 3], False), lambda x: aten._upsample_bicubic2d_aa(x, [3, 3], False),
    lambda x: aten.upsample_nearest3d(x.unsqueeze(-1), [6, 6, 1]), lambda x: aten.upsample_trilinear3d(x.unsqueeze(-1), [6, 6, 1], False),
]  # fmt: skip
