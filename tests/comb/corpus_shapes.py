"""Cases around dims that are moved, nested, cut up and joined, elements that are picked, and what is done elementwise."""

# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from corpus import case, conv, par, total
from torch import Tensor
from torch.nn import Conv1d, Embedding, Linear, PReLU

aten = torch.ops.aten
IMAGE = (3, 4, 4)
EDGES = torch.tensor([[0, 1, 2, 3, 1, 2], [1, 2, 3, 0, 0, 3]])
PLACES = torch.tensor([0, 2, 2, 4])


def several(*functions: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """A layer `a`, what each function makes of numbers between 0 and 1 that come out of it, and a head over the sum."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x).sigmoid()
        return m.head(total(sum((f(y) for f in functions), start=torch.zeros_like(y))))

    return forward


def named(names: str, *more: object) -> list[Callable[[Tensor], Tensor]]:
    """ATen calls by name, each with one tensor and what comes behind it."""
    return [lambda y, name=name: getattr(aten, name)(y, *more) for name in names.split()]  # type: ignore[misc]


# fmt: off
case("activations", IMAGE, "a:6", several(*named(
     "relu relu6 hardtanh silu gelu hardswish hardsigmoid sigmoid tanh leaky_relu elu selu celu mish softplus softshrink "
     "hardshrink log_sigmoid rrelu alias clone contiguous detach exp exp2 expm1 log log2 log1p sqrt rsqrt square neg abs "
     "reciprocal erf erfc sin cos tan atan asin acos sinh cosh asinh atanh log10 lgamma digamma "
     "special_erfc special_expit special_logit floor ceil round trunc frac sign sgn nan_to_num isnan isinf isfinite logical_not "
     "zeros_like ones_like logit sinc positive _to_copy lift_fresh_copy"),
     *named("dropout feature_dropout alpha_dropout", 0.5, False), *named("threshold", 0.5, 0.1), *named("full_like fill", 2.0),
     lambda y: aten.acosh(y + 1), lambda y: aten.type_as(y, y), lambda y: y.to(torch.float32), lambda y: aten.bitwise_not(y > 0.5), lambda y: aten.hardswish_(y.clone()),
     lambda y: aten.zero_(y.clone()), lambda y: 0 * (torch.bernoulli(y) + torch.rand_like(y) + torch.randn_like(y)) + torch.empty_like(y).fill_(1)),
     a=conv(3, 6), head=Linear(6, 2))
case("of two tensors", IMAGE, "s:6", lambda m, x: m.head(total(sum(f(m.a(x).sigmoid(), m.s.sigmoid().view(-1, 1, 1)) for f in BINARY))), a=conv(3, 6), s=par(6), head=Linear(6, 2))
case("of three tensors", IMAGE, "s:6", lambda m, x: m.head(total(sum(f(m.a(x), m.b(x), m.s.view(-1, 1, 1)) for f in TERNARY))),
     a=conv(3, 6), b=conv(3, 6), s=par(6), head=Linear(6, 2))
case("written over", IMAGE, "a:6 b:2", lambda m, x: m.head(total(filled(m, x))), a=conv(3, 6), b=conv(3, 2), head=Linear(8, 2))
case("copied", IMAGE, "a:6", lambda m, x: m.head(total(aten.copy(m.b(x), m.a(x)))), a=conv(3, 6), b=conv(3, 6), head=Linear(6, 2))
case("meshes", (3,), "g:5 h:3", lambda m, x: m.head(m.a(x) * mesh(m, "ij").sum(1) * mesh(m, "xy").sum(0)),
     a=Linear(3, 5), g=par(5), h=par(3), head=Linear(5, 2))
case("stretched together", IMAGE, "s:6", lambda m, x: m.head(total(torch.mul(*torch.broadcast_tensors(m.a(x), m.s.view(-1, 1, 1))))), a=conv(3, 6), s=par(6), head=Linear(6, 2))
case("slopes", IMAGE, "a:6 b:5", lambda m, x: m.head(total(m.q(m.b(m.p(m.a(x)))))), a=conv(3, 6), p=PReLU(6), b=conv(6, 5), q=PReLU(), head=Linear(5, 2))
case("gated halves", IMAGE, "a:6", lambda m, x: m.head(total(F.glu(m.a(x), -3))), a=conv(3, 12), head=Linear(6, 2))
case("triangles", (4,), "b:4", lambda m, x: m.head(F.linear(m.a(x), m.w.tril() + m.w.triu(1))) + m.d(m.b(x)), a=Linear(4, 6), w=par(6, 6), b=Linear(4, 4), d=Linear(4, 2), head=Linear(6, 2))
case("order along channels", (3, 5), "b:4", lambda m, x: m.head(ordered(m.a(x), 1).sum(2)) + m.d(ordered(m.b(x), 2).sum(2)),
     a=Conv1d(3, 6, 1), b=Conv1d(3, 4, 1), head=Linear(6, 2), d=Linear(4, 2))
case("order along two dims", (3, 5), "", lambda m, x: m.head(torch.roll(m.a(x), 1).flip((1, 2)).sum(2)), a=Conv1d(3, 6, 1), head=Linear(6, 2))
case("reshapes", IMAGE, "a:2 a:2:6", lambda m, x: m.head(reshaped(m.a(x))), a=conv(3, 12), head=Linear(12, 2))
case("shaped as another", IMAGE, "s:5 a:6", lambda m, x: m.head(m.a(x).flatten(1).view_as(m.b(x)).mean((2, 3)) + m.a(x).flatten(2).reshape_as(m.b(x)).mean((2, 3))) + m.d(m.s.expand_as(m.e(x.mean((2, 3))))) + m.f(m.e(x.mean((2, 3)))),
     a=conv(3, 6), b=conv(3, 6), e=Linear(3, 5), s=par(5), d=Linear(5, 2), f=Linear(5, 2), head=Linear(6, 2))
case("expanded", (5,), "w:3 w:2:4", lambda m, x: m.head((m.a(x).unsqueeze(1).expand(-1, 3, 4) * m.w).sum(1) * m.o.expand(x.shape[0], 4)), a=Linear(5, 4), w=par(3, 4), o=par(1, 1), head=Linear(4, 2))
case("repeated", IMAGE, "t:5 a:6", lambda m, x: m.head(total(m.a(x).repeat(1, 2, 1, 1) + m.a(x).tile((2, 1, 1)))) + m.d(total(m.b(x).repeat_interleave(2, 1)) * m.t.repeat(x.shape[0], 1)),
     a=conv(3, 6), b=conv(3, 5), t=par(1, 10), d=Linear(10, 2), head=Linear(12, 2))
case("moved dims", IMAGE, "w:5 w:2:6", lambda m, x: m.head(moved(m.a(x)).sum((1, 2)) @ m.w.T), a=conv(3, 6), w=par(5, 6), head=Linear(5, 2))
case("joined", (5,), "s:6 a:4 b:3", lambda m, x: m.head(torch.cat([m.a(x), m.b(x)], -1) + torch.concat((m.a(x), m.b(x)), 1)) + m.d(torch.concatenate([m.a(x)[:, None], m.a(x)[:, None]], 1).sum(1)) + m.e(torch.stack([m.s, m.s * 2], -1)[..., 1]),
     a=Linear(5, 4), b=Linear(5, 3), s=par(6), e=Linear(6, 2), d=Linear(4, 2), head=Linear(7, 2))
case("stacked", IMAGE, "a:6", lambda m, x: m.head(total(torch.stack([m.a(x), m.b(x)], 1).sum(1))), a=conv(3, 6), b=conv(3, 6), head=Linear(6, 2))
case("split", IMAGE, "a:2 a:2:2 b:5", lambda m, x: m.head(total(halves(m, x))), a=conv(3, 6), b=conv(4, 5), head=Linear(9, 2))
case("split at places", IMAGE, "a:3 b:2 b:3:3", lambda m, x: m.head(total(torch.mul(*m.a(x).tensor_split(2, 1)))) + m.d(torch.cat([torch.hsplit(total(m.b(x)), [2])[1], torch.dsplit(m.b(x), 2)[0].sum((2, 3)), m.b(x).tensor_split([2, 3], 1)[2].sum((2, 3))], 1)),
     a=conv(3, 6), b=conv(3, 6), d=Linear(13, 2), head=Linear(3, 2))
case("stacked along a dim", IMAGE, "a:4 b:3", lambda m, x: m.head(torch.hstack([total(m.a(x)), total(m.b(x))]) * torch.column_stack((total(m.a(x)), total(m.b(x)))) + torch.dstack([m.a(x), m.a(x)]).sum((2, 3)).sum(1, keepdim=True) + torch.vstack([m.b(x), m.b(x)]).sum()),
     a=conv(3, 4), b=conv(3, 3), head=Linear(7, 2))
case("narrowed", IMAGE, "a:3 a:2:2", lambda m, x: m.head(total(m.a(x).narrow(1, 3, 2))) + m.d(total(m.a(x).narrow(1, 0, 3))), a=conv(3, 6), d=Linear(3, 2), head=Linear(2, 2))
case("diagonals", (3, 4), "a:5", lambda m, x: m.head(torch.diagonal(m.a(x).unsqueeze(1) * m.b(x).unsqueeze(2), 0, 1, 2).sum(-1)), a=Linear(4, 5), b=Linear(4, 5), head=Linear(5, 2))
case("turned by a right angle", IMAGE, "a:4 b:3", lambda m, x: m.head(m.b(torch.rot90(m.a(x), 1, (2, 3))).flatten(2).sum(2)) + m.d(torch.rot90(total(m.e(x)).unsqueeze(2), 1, [2, 1]).sum(1)), a=conv(3, 4), b=conv(4, 3, 2), d=Linear(5, 2), e=conv(3, 5), head=Linear(3, 2))
case("every pair of places", (5,), "k:3 a:4", lambda m, x: m.head(m.a(x) @ torch.kron(m.a.weight[:, 0], m.k).view(4, 3)), a=Linear(5, 4), k=par(3), head=Linear(3, 2))
case("sliced", IMAGE, "a:2 a:2:4 b:2:3 b:3:2", lambda m, x: m.head(total(torch.cat([m.a(x)[:, -4:], m.a(x)[:, :-4]], 1))) + m.d(total(m.b(x)[:, 1:4])) + m.e(total(m.f(x)[:, ::2])),
     a=conv(3, 6), b=conv(3, 6), f=conv(3, 6), d=Linear(3, 2), e=Linear(3, 2), head=Linear(6, 2))
case("padded", IMAGE, "a:4 d:2 b:5", lambda m, x: m.head(total(m.b(F.pad(m.a(x), (0, 0, 0, 0, 2, 1), value=1.5) + m.d(x)))), a=conv(3, 4), d=conv(3, 7), b=conv(7, 5), head=Linear(5, 2))
case("padded along space", IMAGE, "a:4", lambda m, x: m.head(sum(total(f(m.a(x))) for f in PADS)), a=conv(3, 4), head=Linear(4, 2))
case("padded along channels by themselves", (3, 5), "", lambda m, x: m.head(F.pad(m.a(x).mT, (1, 1), mode="replicate").sum(1)), a=Conv1d(3, 4, 1), head=Linear(6, 2))
case("pixels shuffled", IMAGE, "a:5 b:4", lambda m, x: m.head(total(m.b(F.pixel_unshuffle(F.pixel_shuffle(m.a(x), 2), 2)))), a=conv(3, 20), b=conv(20, 4), head=Linear(4, 2))
case("channels shuffled", IMAGE, "a:2 a:2:4 b:5", lambda m, x: m.head(total(m.b(F.channel_shuffle(m.a(x), 2)))), a=conv(3, 8), b=conv(8, 5), head=Linear(5, 2))
case("windows", (3, 8), "b:6", lambda m, x: m.head(m.b(x).unfold(2, 3, 2).sum((2, 3))) + m.d(m.a(x.sum(1)).unfold(1, 3, 2).flatten(1)), b=Conv1d(3, 6, 1), a=Linear(8, 9), head=Linear(6, 2), d=Linear(12, 2))
case("patches", IMAGE, "a:6 d:5 b:4", lambda m, x: m.head(total(m.b(F.fold(m.d(F.unfold(m.a(x), 2, stride=2).mT).mT, 4, 2, stride=2)))), a=conv(3, 6), d=Linear(24, 20), b=conv(5, 4), head=Linear(4, 2))
case("selected", (4, 6), "a:5", lambda m, x: m.head(m.a(x).select(-2, 1) * m.a(x).unbind(1)[2]) + m.d(m.b(x).sum(1)[:, 3:4]) + m.b(x).select(2, 1).sum(1, keepdim=True), a=Linear(6, 5), b=Linear(6, 4), d=Linear(1, 2), head=Linear(5, 2))
case("unbound", (4, 6), "b:5", lambda m, x: m.head(torch.stack(m.b(x).unbind(1)[:3], 1).sum(1)) + m.d(sum(m.a(x).sum(1).unbind(1)).unsqueeze(1)), a=Linear(6, 4), b=Linear(6, 5), d=Linear(1, 2), head=Linear(5, 2))
case("picked", (4, 6), "a:5 j:3 i:4", lambda m, x: m.head(m.a(x).index_select(-2, m.i).sum(1)) + m.d(m.b(x).sum(1).index_select(1, m.j)), a=Linear(6, 5), i=PLACES % 4, b=Linear(6, 4), j=PLACES[:3] % 4, d=Linear(3, 2), head=Linear(5, 2))
case("looked up", (4, 6), "t:3:4 a:5 i:4", lambda m, x: m.head((m.a(x) + m.e(PLACES)).sum(1)) + m.d((m.b(x)[:, m.i] + m.b(x).index_select(-2, m.i)).sum(1) * m.t[m.i, m.i].sum(0)) + m.f(m.g(x)[..., m.i].sum(1)),
     a=Linear(6, 5), e=Embedding(9, 5), b=Linear(6, 4), t=par(5, 6, 4), i=PLACES % 4, d=Linear(4, 2), g=Linear(6, 7), f=Linear(4, 2), head=Linear(5, 2))
case("gathered", (6, 3), "a:5 i:4", lambda m, x: m.head(torch.gather(m.a(x), 1, m.i.view(1, -1, 1).expand(x.shape[0], -1, 5)).sum(1)), a=Linear(3, 5), i=PLACES, head=Linear(5, 2))
case("gathered in part", (6, 3), "i:4", lambda m, x: m.head(torch.gather(m.a(x), 1, m.i.view(1, -1, 1).expand(x.shape[0], -1, 3)).sum(1)), a=Linear(3, 5), i=PLACES, head=Linear(3, 2))
case("sent along edges", (4, 3), "a:6", lambda m, x: m.head(F.relu(sent(m, m.a(x))).sum(1)), a=Linear(3, 6), s=EDGES[0], e=EDGES[1], head=Linear(6, 2))
case("scattered", (4, 3), "a:6", lambda m, x: m.head(F.relu(scattered(m, m.a(x))).sum(1)), a=Linear(3, 6), s=EDGES[0], e=EDGES[1], head=Linear(6, 2))
case("scattered over channels", (4, 5), "", lambda m, x: m.head(m.a(x).scatter(2, PLACES.expand(x.shape[0], 4, -1), m.b(x)).sum(1)), a=Linear(5, 6), b=Linear(5, 4), head=Linear(6, 2))
case("put by index", (4, 3), "v:2:6", lambda m, x: m.head(F.linear(x, put(m)).sum(1)) + m.d(m.b(x).index_put((torch.arange(1), m.i), m.v).sum(1)),
     t=par(5, 3), u=par(4, 3), i=PLACES % 4, b=Linear(3, 6), v=par(4, 6), d=Linear(6, 2), head=Linear(5, 2))
case("put in place", (4, 5), "a:6", lambda m, x: m.head((m.a(x).select_scatter(m.b(x)[:, 0], 1, 2) + m.a(x).slice_scatter(m.b(x)[:, :2], 1, 1, 3)).sum(1)), a=Linear(5, 6), b=Linear(5, 6), head=Linear(6, 2))
case("out of nothing", (4,), "a:6", lambda m, x: m.head(m.a(x) * created(m.a(x))), a=Linear(4, 6), head=Linear(6, 2))
case("counted", (4, 5), "b:4", lambda m, x: m.head(m.a(x) * counts()) .sum(1) + F.one_hot(m.b(x).relu().bool().long(), 2).to(x.dtype).sum((1, 2)), a=Linear(5, 6), b=Linear(5, 4), head=Linear(6, 2))
# fmt: on

BINARY_NAMES = (
    "add sub rsub mul div true_divide floor_divide remainder fmod pow maximum minimum fmax fmin eq ne lt le gt ge "
    "xlogy atan2 logaddexp logaddexp2 copysign float_power ldexp isclose hypot heaviside multiply subtract divide clamp_min clamp_max logical_and logical_or logical_xor"
)

BINARY: list[Callable[[Tensor, Tensor], Tensor]] = [
    *(lambda y, s, name=name: getattr(aten, name)(y, s) for name in BINARY_NAMES.split()),  # type: ignore[misc]
    lambda y, s: aten.bitwise_and(y > 0.5, s > 0.5), lambda y, s: aten.bitwise_or(y > 0.5, s > 0.5),
]  # fmt: skip

TERNARY: list[Callable[[Tensor, Tensor, Tensor], Tensor]] = [
    lambda a, b, s: torch.where(a > 0, b, s), lambda a, b, s: b.masked_fill(a > s, 0.5), lambda a, b, s: torch.lerp(a, b, s),
    lambda a, b, s: torch.addcmul(a, b, s), lambda a, b, s: torch.addcdiv(a, b, s.exp()), lambda a, b, s: torch.clamp(a, b, s),
    lambda a, b, s: torch.clip(a, min=b, max=s),
]  # fmt: skip

PADS = [
    lambda x: F.pad(x, (1, 1, 0, 1), mode="replicate"), lambda x: F.pad(x, (1, 1, 1, 0), mode="circular"), lambda x: F.pad(x, (0, 0, -1, 1)),
    lambda x: aten.constant_pad_nd(x, [1, 0], 0.5), lambda x: aten.reflection_pad2d(x, [1, 1, 1, 1]), lambda x: aten.replication_pad2d(x, [1, 1, 1, 1]),
    lambda x: aten.reflection_pad1d(x.flatten(2), [1, 1]), lambda x: aten.replication_pad1d(x.flatten(2), [1, 1]),
]  # fmt: skip


def filled(m: Any, x: Tensor) -> Tensor:
    """Two tensors side by side, written into a third."""
    out = torch.zeros(x.shape[0], 8, 4, 4, dtype=torch.float64)
    out[:, :6] = m.a(x)
    out[:, 6:] += m.b(x)
    return out


def mesh(m: Any, indexing: str) -> Tensor:
    return torch.meshgrid(m.g, m.h, indexing=indexing)[0]


def ordered(x: Tensor, dim: int) -> Tensor:
    """What looks at the order of elements along a dim."""
    out = x.cumsum(dim) + x.cumprod(dim) + x.flip(dim) + x.sort(dim)[0] + x.topk(x.shape[dim], dim)[0] + x.roll(1, dim)
    return out + x.logcumsumexp(dim) + x.argsort(dim)


def reshaped(x: Tensor) -> Tensor:
    """One tensor `[b, 12, 4, 4]` through every call that nests dims, and back to `[b, 12]`."""
    x = x.unflatten(1, (2, 6)).unsqueeze(-1).squeeze(-1).flatten(1, 2).reshape(-1, 2, 6, 16)
    return aten._unsafe_view(x, [x.shape[0], 12, 16]).unsqueeze(1).squeeze_(1).sum(-1).view(-1, 12)


def moved(x: Tensor) -> Tensor:
    """Channels last, by every call that moves dims."""
    x = x.movedim(1, -1).moveaxis(-1, 1).permute(0, 2, 3, -3).swapaxes(1, 2).swapdims(2, 1)
    return aten.adjoint(x.transpose(-1, -2).mT).mT


def halves(m: Any, x: Tensor) -> Tensor:
    """Channels in uneven parts, and one of them in chunks."""
    first, second = m.a(x).split([2, 4], 1)
    one, two = second.chunk(2, 1)
    return torch.cat([m.b(second), first + one, two], 1)


def sent(m: Any, x: Tensor) -> Tensor:
    """Messages along edges, added up, and calls of the same kind that write."""
    nodes = torch.zeros_like(x).index_add(1, m.e, x[:, m.s] * x.index_select(1, m.e).sigmoid())
    return nodes + x.index_copy(1, m.e[:3], x[:, m.s[:3]]) + x.index_fill(1, m.s[:2], 0.5)


def scattered(m: Any, x: Tensor) -> Tensor:
    """The same by tensors of places."""
    where = m.e.view(1, -1, 1).expand(x.shape[0], -1, x.shape[2])
    message = x[:, m.s]
    out = x.scatter_add(1, where, message) + x.scatter_reduce(1, where, message, "amax")
    return out + x.scatter(1, where[:, :4], message[:, :4]) + x.scatter(1, where[:, :1], 0.5)


def put(m: Any) -> Tensor:
    """A table with some rows replaced."""
    return m.t.index_put((m.i,), m.u) + aten._unsafe_index_put(m.t, [m.i], m.u)


def created(x: Tensor) -> Tensor:
    """A factor `[b, 6]` of fresh tensors, as wide as the channels that it meets."""
    one = (
        torch.ones(x.shape[0], 6, dtype=x.dtype)
        + torch.zeros(6, dtype=x.dtype)
        + torch.full((1, 6), 2.0, dtype=x.dtype)
    )
    one = one + x.new_ones(6) + x.new_zeros(1, 6) + x.new_full((6,), 0.5) + aten.fill(x.new_empty(x.shape[0], 6), 1.0)
    return one + aten.fill(torch.empty(6, dtype=x.dtype), 2.0) + 0 * (torch.rand(6) + torch.randn(6))


def counts() -> Tensor:
    """Fresh tensors in which every place is another `[6]`."""
    one = torch.arange(6) + torch.linspace(0, 1, 6) + torch.logspace(0, 1, 6) + torch.eye(6)[1] + torch.hann_window(6)
    one = one + 0 * torch.randperm(6) + torch.tril_indices(3, 3)[0] + torch.triu_indices(3, 3)[1]
    return (one + torch.scalar_tensor(2.0)).double()
