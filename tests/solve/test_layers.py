"""A step seen as layers."""

from dataclasses import replace

import pytest

from penstock.ir.machine import Device, Machine
from penstock.ir.policy import Problem
from penstock.ir.text import parse
from penstock.record.fake import record_fake
from penstock.solve.layers import (
    LayerKind,
    awaits_backward,
    feature_inputs,
    heavy_kinds,
    kind_of,
    last_used_in,
    layers_of,
)
from penstock.zoo.workloads import workload

MACHINE = Machine(Device("cpu", 2**40))


def of_modules(trace, *paths):
    """The same trace, its ops in these modules."""
    ops = tuple(replace(op, module=path) for op, path in zip(trace.ops, paths, strict=True))
    return replace(trace, ops=ops)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten.convolution", LayerKind.CONVOLUTION),
        ("aten._convert_weight_to_int4pack", LayerKind.OTHER),
        ("aten.addmm", LayerKind.PRODUCT),
        ("aten.mm", LayerKind.PRODUCT),
        ("aten.upsample_bilinear2d", LayerKind.OTHER),
        ("aten._scaled_dot_product_flash_attention_for_cpu", LayerKind.ATTENTION),
        ("aten.mkldnn_rnn_layer", LayerKind.RECURRENT),
        ("aten.max_pool2d_with_indices", LayerKind.POOL),
        ("aten.native_batch_norm", LayerKind.NORM),
        ("aten.normal_", LayerKind.OTHER),
        ("aten.relu_", LayerKind.ACTIVATION),
        ("aten.hardtanh", LayerKind.ACTIVATION),
        ("aten.gelu", LayerKind.ACTIVATION),
        ("aten.bernoulli_", LayerKind.DROPOUT),
        ("aten._log_softmax", LayerKind.SOFTMAX),
        ("aten.nll_loss_forward", LayerKind.SOFTMAX),
        ("aten.add", LayerKind.OTHER),
    ],
)
def test_the_name_of_an_op_tells_its_kind(name, kind):
    assert kind_of(name) is kind


NET = parse("""
    f aten.convolution  x:I4M w:P1K  -> a:A4M      1ms
    f aten.relu_        a            -> ~a         1ms
    f aten.max_pool2d   a            -> p:A1M! i:A2M! 1ms
    f aten.convolution  p v:P1K      -> b:A4M!     1ms
    f aten.add          b p          -> c:A4M!     1ms
    f aten.mm           c u:P1K      -> d:A1M!     1ms
    f aten.nll_loss     d            -> l:T1K      1ms
    b loss'             l d          -> gd:T1M     1ms
    b mm'               gd c u       -> gc:T4M     1ms
    b conv'             gc p v       -> gp:T1M     1ms
    b pool'             gp a i       -> ga:T4M     1ms
    b relu'             ga a         -> gb:T4M     1ms
    b conv'             gb x w       -> gw:G1K     1ms
""")
CONV1, RELU, POOL, CONV2, ADD, MM, LOSS = range(7)


def test_an_op_without_a_module_is_a_layer():
    layers = layers_of(NET)
    assert [(it.first, it.last) for it in layers] == [(n, n) for n in range(7)]
    assert [it.in_place for it in layers] == [n == RELU for n in range(7)]


def test_a_run_of_one_module_is_a_layer_around_one_op_of_a_known_kind():
    """A convolution with an add beside it is one; a pool in the same module is another."""
    paths = ("net", "net", "net", "head", "head", "fc", "", *[""] * 6)
    found = [(it.first, it.last, it.kind.value) for it in layers_of(of_modules(NET, *paths))]
    assert found == [
        (0, 0, "convolution"),
        (1, 1, "activation"),
        (2, 2, "pool"),
        (3, 4, "convolution"),
        (5, 5, "product"),
        (6, 6, "softmax"),
    ]


def test_a_layers_backward_begins_with_the_op_that_needs_what_it_used():
    starts = [it.backward for it in layers_of(NET)]
    # Nothing is saved for the add: its backward begins with that of the layer before.
    assert starts == [12, 11, 10, 9, 9, 8, 7]


def test_the_backward_of_a_module_is_that_of_its_own_ops():
    """Both relus' results are read again by the convolution behind them, which comes first."""
    trace = parse("""
        f aten.relu         x:I4M   -> a:A4M!  1ms
        f aten.convolution  a w:P1K -> b:A4M   1ms
        f aten.nll_loss     b       -> l:T1K   1ms
        b loss'             l       -> gb:T4M  1ms
        b weight'           gb a    -> gw:G1K  1ms
        b input'            gb w a  -> ga:T4M  1ms
        b relu'             ga a    -> gx:T4M  1ms
    """)
    there = of_modules(trace, "act", "conv", "", "", "conv", "conv", "act")
    assert [it.backward for it in layers_of(there)] == [6, 4, 3]
    assert [it.backward for it in layers_of(trace)] == [5, 4, 3]  # a guess, without modules


def test_each_pass_of_a_step_has_its_own_backward():
    """Gradient accumulation: the same modules twice."""
    one = """
        f aten.convolution  x{n}:I4M {w}  -> a{n}:A4M  1ms
        f aten.relu_        a{n}          -> ~a{n}     1ms
        f aten.mm           a{n}          -> l{n}:T1K  1ms
        b mm'               l{n} a{n}     -> g{n}:T4M  1ms
        b relu'             g{n} a{n}     -> h{n}:T4M  1ms
        b conv'             h{n} x{n}     -> k{n}:T1K  1ms
    """
    trace = parse(one.format(n=1, w="w:P1K") + one.format(n=2, w="w"))
    paths = ("conv", "relu", "fc", "fc", "relu", "conv") * 2
    layers = layers_of(of_modules(trace, *paths))
    assert [it.backward for it in layers] == [5, 4, 3, 11, 10, 9]
    assert [it.is_classifier for it in layers] == [False, True, True] * 2


def test_the_classifier_is_what_products_make_of_the_end():
    layers = layers_of(NET)
    assert [n for n, it in enumerate(layers) if it.is_classifier] == [MM, LOSS]


def test_without_products_it_is_the_last_layer_before_the_loss():
    trace = parse("""
        f aten.convolution  x:I4M   -> a:A4M!  1ms
        f aten.convolution  a       -> b:A4M!  1ms
        f aten.relu_        b       -> ~b      1ms
        f aten.clone        b       -> c:A4M   1ms
        f aten.mse_loss     c       -> l:T1K   1ms
    """)
    assert [it.is_classifier for it in layers_of(trace)] == [False, True, True, True, True]


def test_the_last_forward_reader_of_a_value_may_send_it_away():
    layers = layers_of(NET)
    found = last_used_in(NET, layers, NET.gaps(), own=False)
    names = {n: [NET.values[gap.value].name for gap in gaps] for n, gaps in found.items()}
    assert names == {CONV1: ["x"], POOL: ["a"], ADD: ["p"], MM: ["c"]}
    own = last_used_in(NET, layers, NET.gaps(), own=True)
    assert [NET.values[gap.value].name for gap in own[POOL]] == ["a", "i"]


def test_inputs_await_backward_and_parameters_do_not():
    waiting = {NET.values[gap.value].name for gap in NET.gaps() if awaits_backward(NET, gap)}
    assert waiting == {"x", "a", "p", "i", "c"}


def test_features_are_extracted_by_all_but_the_classifier():
    found = feature_inputs(Problem(NET, MACHINE, NET.peak), layers_of(NET), 2**20)
    assert list(found) == [CONV1, POOL, ADD]
    large = feature_inputs(Problem(NET, MACHINE, NET.peak), layers_of(NET), 4 * 2**20)
    assert list(large) == [CONV1, POOL]


def test_convolutions_are_heavy_unless_products_do_more():
    conv = frozenset({LayerKind.CONVOLUTION})
    assert heavy_kinds(NET, layers_of(NET)) == conv
    ops = list(NET.ops)
    ops[MM] = replace(ops[MM], flops=10)
    products = replace(NET, ops=tuple(ops))
    assert LayerKind.PRODUCT in heavy_kinds(products, layers_of(products))
    ops[CONV1] = replace(ops[CONV1], flops=20)
    both = replace(NET, ops=tuple(ops))
    assert heavy_kinds(both, layers_of(both)) == conv


def test_a_recorded_network_has_the_layers_of_its_modules():
    trace = record_fake(lambda: workload("vgg-inplace").step, label="vgg-inplace")
    layers = [it for it in layers_of(trace) if it.path]
    kinds = [it.kind for it in layers]
    convolutions = [it for it in layers if it.kind is LayerKind.CONVOLUTION]
    assert len({it.path for it in layers}) == len(layers)  # each module is called once
    assert len(convolutions) == kinds.index(LayerKind.PRODUCT) - kinds.count(LayerKind.POOL) - sum(
        it.in_place and not it.is_classifier for it in layers
    )
    backward = [it.backward for it in convolutions]
    assert backward == sorted(backward, reverse=True)
    assert all(trace.ops[it.backward].module == it.path for it in convolutions)
