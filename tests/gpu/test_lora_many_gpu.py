"""Many adapters in one batch on a GPU: the ops by the rule of test_lora_gpu.py, and joint steps
against those of each document alone."""

import numpy as np
import pytest
import torch
from errors_and_seeds import fresh_seed, rel
from lora_checks import run
from many_checks import MANY, Many
from steps import CONFIG, Run
from tiny import tiny_model

from liftcore.kernels import reference
from liftcore.kernels.lora_many import lora_gate_up_many, lora_qkv_many
from liftcore.layers.lora import Adapter, only_adapter_trains
from liftcore.training.graph import GraphRunner
from liftcore.training.source import segments_alone
from liftcore.training.together import Learner, TogetherSource
from liftcore.training.together_runner import TogetherGraphRunner

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
TINY = {torch.bfloat16: 2e-4, torch.float16: 3e-5, torch.float32: 1e-6}
# Segments of 128 tokens and tiles that no block has, in sizes that TMA takes.
LARGE = [
    ((1, 0, 2, 1), 128, 1024, (1024, 256, 256), (128,) * 3),
    ((1,) * 8, 65, 512, (768,), (16,)),
]


@pytest.mark.parametrize("dtype", TINY, ids=str)
@pytest.mark.parametrize("case", MANY + LARGE, ids=str)
def test_ops_follow_the_rule(case, dtype):
    many = Many(fresh_seed(), *case).leaves(dtype, "cuda")
    ops = [(lora_qkv_many, reference.lora_qkv_many, many.dys)]
    if len(many.weights) == 2:
        ops.append((lora_gate_up_many, reference.lora_gate_up_many, many.dys[:1]))
    for op, formula, dys in ops:
        wide = many.leaves(torch.float64, "cuda")
        right = run(formula, wide, [dy.double() for dy in dys])
        ours, plain = (
            run(lambda *args, way=way, op=op: op(*args, way=way), many.leaves(dtype, "cuda"), dys)
            for way in ("triton", "plain")
        )
        again = run(op, many.leaves(dtype, "cuda"), dys)
        for a, b, c, d in zip(ours, plain, right, again, strict=True):
            assert rel(a, c) <= 2 * rel(b, c) + TINY[dtype]
            assert torch.equal(a, d), "other bits the second time"


class _Document(Learner):
    def ended(self):
        self.over = True

    def failed(self, error):
        raise error


def test_joint_steps_are_those_of_each_alone(rng):
    config = CONFIG.replace(epochs=4)
    texts = [rng.integers(3, 200, n) for n in (400, 90, 250)]

    def sources():
        return [segments_alone(text, config, [1]) for text in texts]

    alone = [Run(GraphRunner, source, device="cuda").take() for source in sources()]
    model = tiny_model(initializer_range=0.2).to("cuda")
    documents = [_Document(Adapter.of(model, config), source) for source in sources()]
    adapter = Adapter.of(model, config, slots=2)
    source = TogetherSource(adapter, iter(documents), config, 200, prefix=1)
    source.fill()
    adapter.install()
    runner = TogetherGraphRunner(adapter, source)
    with only_adapter_trains(adapter):
        for step in source.steps():
            assert np.isfinite(runner.run(step)) or step.number == 0
    assert any(runner.graphs.values()), runner.why
    for document, right in zip(documents, alone, strict=True):
        assert document.over
        assert rel(document.adapter.values, right.adapter.values) < 1e-3
