"""Laws of regions: every node has one home, layouts follow the channels, and kernels find their region."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cpd_edge.errors import ModelError
from cpd_edge.layout import Layout, Leaf, Prod, Sum
from cpd_edge.measure.runners import OnnxRunner
from cpd_edge.measure.shapes import infer_shapes
from cpd_edge.profile.attribution import Attribution
from cpd_edge.profile.isolated import predict, single_operations
from cpd_edge.profile.regions import find_regions, signature
from cpd_edge.profile.table import Sample

A, B, C = Leaf("a", 8), Leaf("b", 16), Leaf("c", 16)
ONE = Prod(())
RGB = Leaf("rgb", 3)


@dataclass(frozen=True)
class Kernel:
    name: str
    op: str
    order: int
    ms: npt.NDArray[np.float64]
    nodes: tuple[str, ...] = ()


def kernels(*named: tuple[str, str, float]) -> list[Kernel]:
    return [Kernel(name, op, i, np.full(4, ms)) for i, (name, op, ms) in enumerate(named)]


def weight(name: str, *dims: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.full(dims, 0.1, np.float32), name)


def network() -> onnx.ModelProto:
    """stem → conv+bn+relu, a residual add, a concat, a depthwise conv, pool and head."""
    node = helper.make_node
    three = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", ["input", "stem.weight"], ["conv2d"], "node_conv2d", **three),
        node("BatchNormalization", ["conv2d", "g", "g", "g", "g"], ["getitem"], "node_bn"),
        node("Relu", ["getitem"], ["relu"], "node_relu"),
        node("Conv", ["relu", "up.weight"], ["conv2d_1"], "node_conv2d_1", **three),
        node("Relu", ["conv2d_1"], ["relu_1"], "node_relu_1"),
        node("Conv", ["relu_1", "mix.weight"], ["conv2d_2"], "node_conv2d_2", **three),
        node("Add", ["conv2d_2", "relu_1"], ["add_4"], "node_add_4"),
        node("Concat", ["add_4", "relu"], ["cat"], "node_cat", axis=1),
        node("Conv", ["cat", "join.weight"], ["conv2d_3"], "node_conv2d_3", **three),
        node("Conv", ["conv2d_3", "depth.weight"], ["conv2d_4"], "node_conv2d_4", group=16, **three),
        node("GlobalAveragePool", ["conv2d_4"], ["mean"], "node_mean"),
        node("Flatten", ["mean"], ["view"], "node_view"),
        node("Gemm", ["view", "head.weight"], ["logits"], "node_linear", transB=1),
    ]
    weights = [
        weight("stem.weight", 8, 3, 3, 3), weight("g", 8), weight("up.weight", 16, 8, 3, 3),
        weight("mix.weight", 16, 16, 3, 3), weight("join.weight", 16, 24, 3, 3), weight("depth.weight", 16, 1, 3, 3),
        weight("head.weight", 10, 16),
    ]  # fmt: skip
    feed = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 12, 12])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, "net", [feed], [out], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def layouts(*, activations: bool) -> dict[str, tuple[Layout, ...]]:
    k = Leaf("kernel", 3)
    found: dict[str, tuple[Layout, ...]] = {
        "stem.weight": (A, RGB, k, k), "up.weight": (B, A, k, k), "mix.weight": (B, B, k, k),
        "join.weight": (C, Sum((B, A)), k, k), "depth.weight": (C, ONE, k, k), "head.weight": (Leaf("out", 10), C),
    }  # fmt: skip
    if activations:
        n, h = Leaf("batch", 1), Leaf("h", 12)
        found |= {"relu": (n, A, h, h), "relu_1": (n, B, h, h), "cat": (n, Sum((B, A)), h, h), "mean": (n, C, ONE, ONE)}
    return found


def test_every_node_has_one_home() -> None:
    """Regions partition the nodes; each is headed by an operation with its elementwise chain behind it."""
    model = network()
    regions = find_regions(model, layouts(activations=False))
    assert sorted(n for r in regions for n in r.nodes) == sorted(n.name for n in model.graph.node)
    assert {r.name: r.nodes[1:] for r in regions} == {
        "node_conv2d": ("node_bn", "node_relu"),
        "node_conv2d_1": ("node_relu_1",),
        "node_conv2d_2": ("node_add_4",),
        "node_cat": (),
        "node_conv2d_3": (),
        "node_conv2d_4": (),
        "node_mean": ("node_view",),
        "node_linear": (),
    }


@pytest.mark.parametrize("activations", [True, False])
def test_layouts_follow_the_channels(activations: bool) -> None:
    """What a region reads and writes is the same whether activations are named or only parameters are."""
    regions = {r.name: r for r in find_regions(network(), layouts(activations=activations))}
    assert {n: (r.reads, r.writes) for n, r in regions.items()} == {
        "node_conv2d": (RGB, A),
        "node_conv2d_1": (A, B),
        "node_conv2d_2": (B, B),
        "node_cat": (Sum((B, A)), Sum((B, A))),
        "node_conv2d_3": (Sum((B, A)), C),
        "node_conv2d_4": (C, C),
        "node_mean": (C, C),
        "node_linear": (C, Leaf("out", 10)),
    }
    assert regions["node_conv2d_3"].weight[:2] == (C, Sum((B, A)))
    assert regions["node_conv2d_3"].fqn == "join.weight"


def test_multiply_accumulates_are_counted_at_batch_one() -> None:
    """Weights times places for a convolution, weights for a linear layer, nothing for the rest."""
    macs = {r.name: r.dense_macs for r in find_regions(network(), layouts(activations=True))}
    assert macs["node_conv2d"] == 8 * 3 * 9 * 144
    assert macs["node_conv2d_4"] == 16 * 9 * 144
    assert macs["node_linear"] == 160
    assert macs["node_cat"] == macs["node_mean"] == 0


def test_a_linear_layer_of_tokens_reads_its_last_dim() -> None:
    """A folded, transposed weight has no torch name: the activations' layouts say what is read and written.

    It is called as its bias is.
    """
    nodes = [
        helper.make_node("LayerNormalization", ["input", "norm"], ["layer_norm"], "node_layer_norm"),
        helper.make_node("MatMul", ["layer_norm", "val_3"], ["product"], "node_linear"),
        helper.make_node("Add", ["product", "body.bias"], ["linear"], "node_add"),
        helper.make_node("Gelu", ["linear"], ["logits"], "node_gelu"),
    ]
    feed, out = (helper.make_tensor_value_info(n, 1, ["batch", 5, w]) for n, w in (("input", 8), ("logits", 16)))
    weights = [weight("norm", 8), weight("val_3", 8, 16), weight("body.bias", 16)]
    graph = helper.make_graph(nodes, "net", [feed], [out], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    n, t = Leaf("batch", 1), Leaf("tokens", 5)
    dims: dict[str, tuple[Layout, ...]] = {
        "norm": (A,),
        "body.bias": (B,),
        "layer_norm": (n, t, A),
        "linear": (n, t, B),
    }
    norm, linear = find_regions(model, dims)
    assert (norm.name, linear.nodes) == ("node_layer_norm", ("node_linear", "node_add", "node_gelu"))
    assert (norm.fqn, linear.fqn) == ("norm", "body.weight")
    assert (linear.reads, linear.writes, linear.weight) == (A, B, (A, B))
    assert linear.dense_macs == 5 * 8 * 16


def test_fused_and_renamed_kernels_find_their_region() -> None:
    """Names of nodes, of values, with prefixes, suffixes and tokens lead home; layout changes go to a neighbour."""
    model = network()
    regions = find_regions(model, layouts(activations=True))
    times = Attribution.of(regions, model).times(
        kernels(
            ("relu_nchwc", "Conv", 1.0),  # conv, batch norm and relu, after the value
            ("ReorderOutput_token_9", "ReorderOutput", 0.25),  # back: for what follows, which lacks the layout
            ("HardSigmoid_147", "HardSigmoid", 0.125),  # elementwise, renamed by the runtime: what went before
            ("node_conv2d_1", "FusedConv", 2.0),
            ("ReorderInput", "ReorderInput", 0.5),  # to: for what went before, which lacked it
            ("conv2d_2_nchwc", "Conv", 4.0),
            ("node_add_4_token_12", "Add", 0.125),
            ("node_cat", "Concat", 8.0),
            ("fused node_conv2d_3", "FusedConv", 16.0),
            ("conv2d_4_nchwc_token_3", "Conv", 32.0),
            ("mean_nchwc", "GlobalAveragePool", 64.0),
            ("node_linear/MatMulAddFusion/", "Gemm", 128.0),
            ("conv2d_77", "Conv", 256.0),
            ("Memcpy", "Memcpy", 512.0),
        )
    )
    ms, rest = times.ms, times.unattributed_ms
    assert ms == {
        "node_conv2d": 1.125, "node_conv2d_1": 2.75, "node_conv2d_2": 4.125, "node_cat": 8.0, "node_conv2d_3": 16.0,
        "node_conv2d_4": 32.0, "node_mean": 64.0, "node_linear": 128.0,
    }  # fmt: skip
    assert rest == 768.0


def test_a_slow_state_of_the_machine_is_taken_out_of_every_kernel() -> None:
    """Of inferences at other paces, each kernel counts as in the median one, not as the states happened to fall."""
    pace = np.array([1.0, 1.0, 1.0, 1.3, 1.3, 1.3, 1.3])
    disturbed = pace.copy()
    disturbed[3:5] *= 0.5  # of one kernel alone: its own scatter stays its own
    regions = find_regions(network(), layouts(activations=True))
    seen = [Kernel("node_conv2d", "Conv", 0, 2.0 * pace), Kernel("node_conv2d_1", "Conv", 1, 1e-3 * disturbed)]
    found = Attribution.of(regions, network()).times(seen).ms
    assert found["node_conv2d"] == pytest.approx(2.0 * 1.3, rel=1e-3)
    assert found["node_conv2d_1"] == pytest.approx(1e-3 * 1.3, rel=1e-3)


def test_another_build_has_the_same_regions_under_other_names() -> None:
    """Names that an exporter counts up differ between builds; place, or the values made, lead to the region."""
    model, other, longer = network(), network(), network()
    attribution = Attribution.of(find_regions(model, layouts(activations=True)), model)
    other.graph.node[3].name = "node_Conv_99"
    other.graph.node[3].output[0] = other.graph.node[4].input[0] = "val_9"
    assert attribution.adapted(other).region("val_9_nchwc") == "node_conv2d_1"
    longer.graph.node[12].name = "node_Gemm_228"
    longer.graph.node.insert(0, helper.make_node("Identity", ["input"], ["copy"], "node_identity"))
    found = attribution.adapted(longer)
    assert (found.region("node_Gemm_228"), found.region("node_identity")) == ("node_linear", None)


def test_a_build_without_a_branch_keeps_the_other_regions() -> None:
    """An export without it counts its names anew, so they are those of other nodes: what is left counts in order."""
    model, other = network(), network()
    del other.graph.node[5:7]  # the convolution of the branch, and the sum behind it
    other.graph.node[5].input[0] = "relu_1"
    for at, number in ((6, 2), (7, 3)):
        other.graph.node[at].name, other.graph.node[at].output[0] = f"node_conv2d_{number}", f"conv2d_{number}"
    other.graph.node[7].input[0], other.graph.node[8].input[0] = "conv2d_2", "conv2d_3"
    attribution = Attribution.of(find_regions(model, layouts(activations=True)), model)
    found = attribution.adapted(other, ["node_conv2d_2"])
    told = [found.region(n.name) for n in other.graph.node]
    assert told == [
        *["node_conv2d"] * 3, *["node_conv2d_1"] * 2, "node_cat", "node_conv2d_3", "node_conv2d_4", *["node_mean"] * 2,
        "node_linear",
    ]  # fmt: skip
    alike = network()
    del alike.graph.node[8]  # of two convolutions behind each other the first: the second stays what it is
    alike.graph.node[8].input[0] = "cat"
    assert attribution.adapted(alike, ["node_conv2d_3"]).region(alike.graph.node[8].name) == "node_conv2d_4"
    last = network()
    del last.graph.node[9]
    last.graph.node[8].name, last.graph.node[8].output[0] = "node_conv2d_9", "conv2d_9"
    last.graph.node[9].input[0] = "conv2d_9"
    assert attribution.adapted(last, ["node_conv2d_4"]).region("node_conv2d_9") == "node_conv2d_3"


def test_nothing_is_lost_in_attribution() -> None:
    """Regions and the rest add up to the kernels, unfused ones too, in any order of the list."""
    model = network()
    regions = find_regions(model, layouts(activations=True))
    every = kernels(*((n.name, n.op_type, 0.5 + i) for i, n in enumerate(model.graph.node)), ("other", "X", 3.0))
    found = Attribution.of(regions, model).times(every[::-1])
    assert sum(found.ms.values()) + found.unattributed_ms == pytest.approx(sum(k.ms[0] for k in every))
    assert found.unattributed_ms == 3.0
    assert sum(found.kernels.values()) == len(every) - 1


def test_signature_changes_with_what_it_names() -> None:
    """Other layouts or other units give another signature; the same give the same."""
    regions = find_regions(network(), layouts(activations=True))
    groups = {"a": 8, "b": 16, "c": 16}
    assert signature(regions, groups) == signature(find_regions(network(), layouts(activations=True)), groups)
    assert signature(regions, groups) != signature(regions, {**groups, "a": 7})
    assert signature(regions, groups) != signature(regions[1:], groups)


def test_a_single_operation_takes_one_image_whatever_comes_first_in_the_network() -> None:
    """A transformer may have its tokens in front; alone, the operation has a batch of one before them."""
    node = helper.make_node("MatMul", ["tokens", "weight"], ["out"], "product")
    ends = [("tokens", [197, 1, 16]), ("out", [197, 1, 8])]
    feed, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in ends)
    graph = helper.make_graph([node], "net", [feed], [out], [weight("weight", 16, 8)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (alone,) = single_operations(model, {"product"}).values()
    with contextlib.closing(OnnxRunner(alone)) as runner:
        assert runner.outputs(np.ones((1, 197, 1, 16), np.float32)).shape == (197, 1, 8)


def test_single_operations_are_valid_models_of_their_own() -> None:
    """Each region's head becomes a model with one input, and equal operations become equal bytes."""
    model = network()
    heads = {r.name for r in find_regions(model, layouts(activations=True))}
    alone = single_operations(model, heads)
    assert set(alone) == heads
    for data in alone.values():
        single = onnx.load_from_string(data)
        onnx.checker.check_model(single, full_check=True)
        assert (len(single.graph.node), len(single.graph.input)) == (1, 1)
    twice = network()
    twice.graph.node[5].name = "again"
    assert single_operations(twice, {"again"})["again"] == alone["node_conv2d_2"]


def test_what_is_joined_is_followed_to_the_convolutions_it_comes_from() -> None:
    """A sum runs in a runtime's own format only where all that it adds does: what those convolutions read is known.

    What a region convolves itself is not among it; a pool, which has no weights, depends on what it pools.
    """
    regions = {r.name: r for r in find_regions(network(), layouts(activations=False))}
    assert {name: r.joined for name, r in regions.items() if r.joined} == {
        "node_conv2d_2": (A,),
        "node_cat": (B, A, RGB),
        "node_mean": (C,),
    }


def test_an_empty_model_is_refused() -> None:
    """A model without nodes has no regions to name."""
    with pytest.raises(ModelError, match="no nodes"):
        find_regions(onnx.ModelProto(), {})


def test_a_value_into_which_the_input_goes_is_no_constant() -> None:
    """A class token comes first in the concat of a transformer's tokens: what is made of them still varies.

    Of a product whose own result has no name the elementwise chain behind it tells the channels.
    """
    nodes = [
        helper.make_node("Concat", ["token", "input"], ["tokens"], "join", axis=1),
        helper.make_node("MatMul", ["tokens", "folded"], ["unnamed"], "product"),
        helper.make_node("Add", ["unnamed", "bias"], ["wide"], "sum"),
    ]
    feed = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 8])
    out = helper.make_tensor_value_info("wide", TensorProto.FLOAT, ["batch", 4, 16])
    constants = [weight("token", 1, 1, 8), weight("folded", 8, 16), weight("bias", 16)]
    model = helper.make_model(helper.make_graph(nodes, "net", [feed], [out], constants))
    n, places = Leaf("batch", 1), Leaf("places", 4)
    known = {"token": (ONE, ONE, A), "bias": (B,), "tokens": (n, places, A), "wide": (n, places, B)}
    (product,) = [r for r in find_regions(model, known) if r.op == "MatMul"]
    assert (product.reads, product.writes, product.weight) == (A, B, (A, B))
    assert product.nodes == ("product", "sum")


def test_an_operation_that_cannot_stand_alone_costs_the_baseline_nothing() -> None:
    """The runtime refuses one of two: the sum is that of the other, and the table is not lost."""

    class Clock:
        now_ns = 0

        def run(self) -> None:
            Clock.now_ns += 1_000_000

        def close(self) -> None:
            pass

    def make_runner(model: bytes, profiled: bool) -> Clock:
        if onnx.load_from_string(model).graph.node[0].op_type == "Gemm":
            raise ModelError("no engine for it")
        return Clock()

    model = network()
    attribution = Attribution.of(find_regions(model, layouts(activations=True)), model)
    held = [Sample({}, {}, {}, 0.0, 1.0, 1.0, True)]
    found = predict(
        lambda widths: model.SerializeToString(), attribution, held, make_runner, clock=lambda: Clock.now_ns
    )
    assert found == {0: pytest.approx(len(attribution.heading(model)) - 1)}


def test_sizes_that_other_nodes_work_out_are_known_and_integers_are_not_timed() -> None:
    """What follows a resize to a computed size has extents; what reads or makes integers is no model of its own."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], "size", start=0, end=2),
        helper.make_node("Concat", ["shape", "places"], ["to"], "join", axis=0),
        helper.make_node("Resize", ["x", "", "", "to"], ["half"], "half"),
        helper.make_node("Conv", ["half", "w"], ["y"], "body"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, None, None])
    constants = [weight("w", 4, 8, 1, 1), numpy_helper.from_array(np.array([4, 4]), "places")]
    model = helper.make_model(helper.make_graph(nodes, "resized", [x], [y], constants))
    assert infer_shapes(model)["y"] == (1, 4, 4, 4)
    assert single_operations(model, {node.name for node in nodes}).keys() == {"body"}


def test_what_is_joined_is_followed_through_a_convolution_of_no_known_weight_and_through_no_matrix_product() -> None:
    """What widths such a convolution reads is not known, so those before it decide; a product's result is plain."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "stem"], ["a"], "stem"),
        node("MatMul", ["a", "turn"], ["turned"], "turn"),
        node("GlobalAveragePool", ["turned"], ["one"], "behind product"),
        node("Conv", ["a", "nameless"], ["b"], "unknown"),
        node("GlobalAveragePool", ["b"], ["two"], "behind unknown"),
        node("Conv", ["a", "body"], ["c"], "known"),
        node("GlobalAveragePool", ["c"], ["three"], "behind known"),
        node("Concat", ["one", "two", "three"], ["y"], "cat", axis=1),
    ]
    weights = [weight("stem", 8, 3, 1, 1), weight("turn", 4, 4), weight("nameless", 8, 8, 1, 1)]
    feed, out = (helper.make_tensor_value_info(n, 1, dims) for n, dims in (("x", [1, 3, 4, 4]), ("y", [1, 32, 1, 1])))
    graph = helper.make_graph(nodes, "net", [feed], [out], [*weights, weight("body", 16, 8, 1, 1)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    regions = find_regions(model, {"stem": (A, RGB, ONE, ONE), "body": (B, A, ONE, ONE)})
    joined = {r.name: r.joined for r in regions}
    assert (joined["behind product"], joined["behind unknown"], joined["behind known"]) == ((), (RGB,), (A,))


def test_networks_that_differ_in_a_pool_s_window_have_tables_of_their_own() -> None:
    """All their tensors are alike; only what the pool costs is not."""

    def pooled(size: int) -> str:
        node = helper.make_node("MaxPool", ["x"], ["y"], "pool", kernel_shape=[size] * 2, pads=[size // 2] * 4)
        ends = [("x", [1, 8, 9, 9]), ("y", [1, 8, 9, 9])]
        feed, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in ends)
        graph = helper.make_graph([node], "net", [feed], [out], [])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        return signature(find_regions(model, {}), {})

    assert pooled(3) == pooled(3) != pooled(5)


def test_what_is_joined_is_part_of_the_signature() -> None:
    """A table of regions that join something else is another one's."""
    regions = find_regions(network(), layouts(activations=True))
    alone = [replace(r, joined=()) for r in regions]
    assert signature(alone, {"a": 8}) != signature(regions, {"a": 8})
