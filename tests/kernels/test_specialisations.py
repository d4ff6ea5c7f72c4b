"""How many kernels are compiled for a run and launched for a layer, and under which hash they are
kept."""

import itertools
import os
from collections import defaultdict

import pytest
import torch
from steps import CONFIG, Run, mixed
from tiny import tiny_model

from bench.kernels.compile_cases import matrix
from liftcore.kernels.device import HAS_TRITON, INTERPRET, planned
from liftcore.layers.lora import Adapter
from liftcore.training.graph import GraphRunner

pytestmark = pytest.mark.skipif(not HAS_TRITON or INTERPRET, reason="no Triton that compiles")
TOKENS, RANKS = (1, 7, 16, 130, 2048), (8, 24, 128)


def lora_launches(tokens, rank, slack):
    """Forward and backward of a linear, a group and gate/up, x in rows that are `slack` longer."""
    from liftcore.kernels.lora_fused import (
        gate_up_forward,
        lora_backward,
        lora_forward,
        swiglu_backward,
    )

    k, n, two = 96, 192, range(2)
    x, dy = matrix(tokens, k + slack)[:, :k], matrix(tokens, n)
    weights, a, b = ([matrix(*s) for _ in two] for s in ((n, k), (rank, k), (n, rank)))
    given = weights, a, b, [2.0, 1.0]
    lora_forward(x, *given, [None, None])
    gate_up_forward(x, *given, [None, None], False, True)
    swiglu_backward(dy, dy, dy, False)
    lora_backward([dy, dy], x, matrix(tokens, 2 * rank), *given)


def head_launches(tokens):
    from liftcore.kernels.head_loss import Inputs
    from liftcore.kernels.head_loss_cublas import head_loss as cublas
    from liftcore.kernels.head_loss_dhidden import scale_rows
    from liftcore.kernels.head_loss_logits import head_loss

    hidden, weight = matrix(tokens, 96), matrix(1000, 96)
    labels, w = matrix(tokens, dtype=torch.int64), matrix(tokens, dtype=torch.float32)
    rest = hidden, weight, labels, w, None, None, 1.0, True, False
    head_loss(Inputs(*rest, "triton"))
    cublas(Inputs(*rest, "cublas"))
    scale_rows(hidden, w)


def known_before(launch):
    """What a kernel is compiled for by intent: its constants, and what its tensors are."""
    kinds = [getattr(getattr(a, "base", a), "dtype", a is None) for a in launch.args]
    starts = [hasattr(a, "data_ptr") and a.data_ptr() % 16 for a in launch.args]
    return launch.kernel.__name__, str(launch.constexprs), str(kinds), str(starts)


@pytest.mark.parametrize("arch", [80, 90])
def test_tokens_ranks_and_strides_compile_nothing_anew(arch):
    from bench.kernels.jit import specialised
    from liftcore.kernels.tiling import recording

    kernels, launches = defaultdict(set), []
    planned.append(arch)
    try:
        with recording(launches.append):
            for tokens, rank, slack in itertools.product(TOKENS, RANKS, (0, 16)):
                lora_launches(tokens, rank, slack)
            for tokens in TOKENS:
                head_launches(tokens)
    finally:
        planned.pop()
    for launch in launches:
        kernels[known_before(launch)].add(specialised(launch, arch))
    more = {key[0]: len(names) for key, names in kernels.items() if len(names) > 1}
    assert not more and len(launches) > 10 * len(kernels) > 200, (more, len(kernels))


def test_a_whole_run_compiles_few_kernels(rng):
    """Segments, questions and distillation, of all lengths, over more epochs than one."""
    from bench.rehearsal.card import stand_in

    with stand_in() as card:
        source = mixed(rng, rng.integers(3, 200, size=170), CONFIG)
        run = Run(GraphRunner, source, dtype=torch.bfloat16, device="cuda").take()
        lengths = {shape.rows * shape.length for shape in run.runner.buffers}
    assert len(lengths) > 1
    assert len(card.kernels) == len(set(map(known_before, card.kernels.values()))) <= 24


def test_a_kernel_is_kept_under_the_hash_of_a_real_launch(tmp_path, monkeypatch):
    """Tensors that are there give the hash of those that are not, and the cache has it."""
    from triton import knobs
    from triton.runtime.cache import get_cache_manager

    from bench.kernels.jit import compiled, moved, specialised
    from liftcore.kernels.lora_split_triton import sum_kernel
    from liftcore.kernels.tiling import Launch

    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path / "here"))
    monkeypatch.setattr(knobs.compilation, "store_binary_only", True)

    def launch(device, rows):
        out = torch.empty(rows, 96, dtype=torch.bfloat16, device=device)
        parts = torch.empty(3, rows, 96, device=device)
        # A block that no other test compiles: the JIT would have kept it.
        constants = {"BLOCK": 256, "EVEN": True}
        return Launch(sum_kernel, (1,), (out, parts, 3, rows, 96, 96), constants, 4, 3)

    kernel = compiled(launch("meta", 64), 90)
    assert specialised(launch("cpu", 7), 90) == specialised(launch("meta", 64), 90)
    assert specialised(launch("cpu", 7), 90) != specialised(launch("cpu", 7)._replace(warps=8), 90)
    group = get_cache_manager(kernel.hash).get_group("sum_kernel.json")
    assert {"sum_kernel.json", "sum_kernel.cubin"} <= set(group) and "sum_kernel.ptx" not in group
    # Carried to another folder it is found there, which Triton alone would not manage.
    os.rename(tmp_path / "here", tmp_path / "there")
    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path / "there"))
    assert get_cache_manager(kernel.hash).get_group("sum_kernel.json") == {}
    assert moved(tmp_path / "there") == 1
    group = get_cache_manager(kernel.hash).get_group("sum_kernel.json")
    assert all(os.path.exists(path) and "there" in path for path in group.values()) and group


def test_few_tokens_take_the_plain_way_and_fusions_the_kernels():
    from liftcore.kernels.tiles import way

    for arch in (80, 90, 100):
        assert {way(op, arch, 31) for op in ("linear", "group", "gate_up")} == {"plain"}
        assert way("gate_up", arch, 32) == way("group", arch, 32) == "triton"
    assert way("linear", 80, 8192) == "triton" and way("linear", 90, 8192) == "plain"
    assert way("gate_up", 75, 8192) == "plain"


@pytest.mark.parametrize(("arch", "kernels"), [(80, 0), (90, 2)])
def test_a_linear_over_fp8_takes_its_kernel_where_that_runs(arch, kernels):
    """For few tokens and many, with LoRA and without, though a linear in 16 bits is plain."""
    from bench.rehearsal.card import stand_in
    from liftcore.kernels.fp8 import quantise_weight
    from liftcore.kernels.lora import lora_linear
    from liftcore.kernels.lora_fp8 import fp8_linear

    with stand_in(arch) as card:
        given = [torch.randn(*s, device="cuda").bfloat16() for s in ((96, 64), (16, 64), (96, 16))]
        weight = quantise_weight(given[0])
        for tokens in (1, 512):
            x = torch.empty(tokens, 64, dtype=torch.bfloat16, device="cuda")
            card.reset()
            lora_linear(x, weight, *given[1:], 2.0)
            fp8_linear(x, weight)
            launched = [n for name, n in card.launches.items() if name.startswith("fp8_chain")]
            assert sum(launched) == kernels, (tokens, card.launches)


@pytest.mark.parametrize(("tokens", "fused", "most"), [(512, 28, 140), (8, 0, 150)])
def test_launches_of_a_layer_are_within_their_budget(tokens, fused, most):
    """Forward and backward of one layer more: launches of Triton, and all ops that compute."""
    from bench.rehearsal.card import stand_in

    def counts(layers):
        model = tiny_model(num_hidden_layers=layers, dtype=torch.bfloat16).to("cuda")
        Adapter(model, 8, 16.0).install()
        ids = torch.zeros(1, tokens, dtype=torch.int64, device="cuda")

        def step():
            model.model(input_ids=ids, use_cache=False).last_hidden_state.sum().backward()

        step()
        card.reset()
        step()
        return card.launches.total(), card.computing.total()

    with stand_in() as card:
        (few, ops), (more, more_ops) = counts(1), counts(2)
    assert more - few == fused and more_ops - ops + fused <= most
