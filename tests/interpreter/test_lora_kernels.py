"""The Triton kernels of the LoRA linear and its groups against fp64 truth, in fp32."""

import pytest
import torch
from errors_and_seeds import fresh_seed, rel
from lora_checks import (
    assert_close,
    make_group,
    names,
    run,
    truth,
)

from liftcore.kernels import lora_fused, lora_triton
from liftcore.kernels.lora import lora_gate_up, lora_linear, lora_qkv, path
from liftcore.kernels.lora_split_triton import split, split_product
from liftcore.kernels.tiles import Tile, trying

# T, K, N, R: each value of T in 1, 7, 64, 129, K and N in 48, 80, 257 and R in 1, 8, 16, 128.
LINEAR = [
    (1, 48, 80, 1),
    (1, 257, 48, 128),
    (7, 80, 257, 8),
    (7, 48, 48, 16),
    (64, 257, 257, 1),
    (64, 80, 80, 128),
    (129, 48, 257, 16),
    (129, 257, 80, 8),
    (129, 80, 48, 128),
    (33, 40, 56, 512),
]
GROUPS = [
    (1, 48, (80, 48, 48), (8, 8, 8)),
    (129, 80, (257, 48, 16), (16, 1, 8)),
    (64, 257, (80, 33), (8, 128)),
]
GATE_UP = [(1, 257, 48, (8, 8)), (7, 48, 257, (1, 16)), (129, 80, 80, (16, 8))]


def test_the_triton_path_is_live():
    assert path(torch.ones(2, 3)) == "triton interpreter"
    assert path(torch.ones(2, 3).bfloat16()) == "plain"


@pytest.mark.parametrize("shape", LINEAR, ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_linear(shape, bias):
    g = fresh_seed()
    t, k, n, r = shape
    group = make_group(g, t, k, (n,), (r,), bias)
    dys = [torch.randn(t, n, generator=g)]
    ours = run(lora_linear, group, dys, group.single)
    assert_close(ours, truth("lora_qkv", group, dys), names(group, 1))


@pytest.mark.parametrize("shape", GROUPS, ids=str)
def test_group(shape):
    g = fresh_seed()
    t, k, widths, ranks = shape
    group = make_group(g, t, k, widths, ranks)
    dys = [torch.randn(t, n, generator=g) for n in widths]
    ours = run(lora_qkv, group, dys)
    assert_close(ours, truth("lora_qkv", group, dys), names(group, len(widths)))


@pytest.mark.parametrize("shape", GATE_UP, ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gate_up(shape, activation):
    g = fresh_seed()
    t, k, n, ranks = shape
    group = make_group(g, t, k, (n, n), ranks, bias=t != 7)
    dys = [torch.randn(t, n, generator=g)]
    ours = run(lambda *args: lora_gate_up(*args, activation=activation), group, dys)
    assert_close(ours, truth("lora_gate_up", group, dys, activation), names(group, 1))


def test_members_of_one_scaling_share_the_product_of_s(monkeypatch):
    layouts, split_product = [], lora_fused.split_product

    def spy(out, p, q, layout, *scale):
        layouts.append(layout)
        return split_product(out, p, q, layout, *scale)

    monkeypatch.setattr(lora_fused, "split_product", spy)
    g = fresh_seed()
    group = make_group(g, 9, 20, (24, 16), (4, 3))
    group.scalings[:] = [0.7, 0.7]
    dys = [torch.randn(9, n, generator=g) for n in (24, 16)]
    ours = run(lora_qkv, group, dys)
    assert layouts.count("nt") == 1
    assert_close(ours, truth("lora_qkv", group, dys), names(group, 2))


@pytest.mark.parametrize("depths", [(8, 132), (68, 20, 64), (4, 64, 12, 132)], ids=str)
@pytest.mark.parametrize("nt, cols", [(True, 300), (False, 36)])
def test_products_of_several_depths_share_one_loop(depths, nt, cols):
    """Through descriptors, and with a tile that is stored in halves."""
    g, rows = fresh_seed(), 70
    left = [torch.randn(rows, k, generator=g) for k in depths]
    right = [torch.randn((cols, k) if nt else (k, cols), generator=g) for k in depths]
    (p, *xs), (q, *ws) = left, right
    out = torch.full((rows, cols), float("nan"))
    with trying("forward" if nt else "dx", Tile(64, 256, 64, 1, 1)):
        lora_triton.chain(out, p, q, list(zip(xs, ws, strict=True)), nt=nt)
    wide = [w.double().T if nt else w.double() for w in right]
    assert rel(out, sum(x.double() @ w for x, w in zip(left, wide, strict=True))) < 1e-5


def test_gate_up_without_gradients_keeps_nothing(monkeypatch):
    kept = []

    def spy(*args, keep, **kwargs):
        kept.append(keep)
        return launch(*args, keep=keep, **kwargs)

    launch = lora_triton.gate_up
    monkeypatch.setattr(lora_triton, "gate_up", spy)
    group = make_group(fresh_seed(), 5, 16, (24, 24), (4, 4))
    h = lora_gate_up(*group.args)
    with torch.no_grad():
        assert torch.equal(h, lora_gate_up(*group.args))
    assert kept == [True, False]


@pytest.mark.parametrize("depth, m, n", [(1, 16, 48), (129, 80, 1), (200, 257, 8), (640, 64, 70)])
@pytest.mark.parametrize("layout", ["nt", "nn", "tn"])
def test_split_product_over_many_spans(depth, m, n, layout):
    g = fresh_seed()
    p, q = torch.randn(m, depth, generator=g), torch.randn(depth, n, generator=g)
    right = 0.3 * p.double() @ q.double()
    p = p.T.contiguous() if layout == "tn" else p
    q = q.T.contiguous() if layout == "nt" else q
    wide = torch.full((m, 2 * n + 3), 7.0)
    ours = split_product(wide[:, n : 2 * n], p, q, layout, 0.3)
    assert rel(ours, right) < 1e-5
    assert (wide[:, :n] == 7).all() and (wide[:, 2 * n :] == 7).all()
    assert torch.equal(ours, split_product(torch.empty(m, n), p, q, layout, 0.3))


def test_spans_cover_every_token_once():
    for tokens, tiles, sms, step in ((1, 1, 132, 64), (8192, 32, 132, 64), (8191, 5, 108, 32)):
        span, spans = split(tokens, tiles, sms, step, 512)
        assert span % step == 0 and (spans - 1) * span < tokens <= spans * span


@pytest.mark.parametrize("rows, cols", [(64, 80), (65, 257), (300, 200)])
def test_tiles_beside_the_matrix_are_not_touched(rows, cols):
    """Rows of a wider buffer: what lies right of and below the output must survive."""
    g = fresh_seed()
    for aligned in (False, True):  # pointers, descriptors
        buffer = torch.full((rows + 2, cols + (-cols) % 8 + (8 if aligned else 9)), 7.0)
        out = buffer[:rows, :cols]
        p, q = torch.randn(rows, 16, generator=g), torch.randn(cols, 16, generator=g)
        lora_triton.chain(out, p, q, [(p, q)], nt=True)
        assert rel(out, 2.0 * p.double() @ q.double().T) < 1e-5
        assert (buffer[rows:] == 7).all() and (buffer[:, cols:] == 7).all()
