"""One model in whatever mode its owner left it, and several memories that share it."""

import threading

import numpy as np
import pytest
import torch
from bees import TEXT
from tiny import tiny_model
from transformers.modeling_outputs import BaseModelOutputWithPast

import liftcore
from liftcore import model as models
from liftcore import report
from liftcore.answer import greedy
from liftcore.config import LiftConfig
from liftcore.pretrained import dtype_keyword

CONFIG = LiftConfig(segment_length=16, epochs=2, rank=4, learning_rate=5e-2)


def training(model):
    model.train()
    model.gradient_checkpointing_enable()
    model.config.use_cache = False


def halves(model):
    """Some modules of it train, others do not."""
    for n, module in enumerate(model.modules()):
        module.training = n % 2 == 0


@pytest.mark.parametrize("prepare", [training, halves])
def test_recall_and_answers_do_not_depend_on_the_mode(loaded, rng, prepare):
    plain = tiny_model(initializer_range=0.2, attention_dropout=0.5)
    model = tiny_model(initializer_range=0.2, attention_dropout=0.5)
    prepare(model)
    modes = [m.training for m in model.modules()]
    ids = torch.from_numpy(rng.integers(3, 200, size=(4, 9)))
    assert torch.equal(greedy(model, ids, 12), greedy(plain, ids, 12))
    tokens = np.tile(rng.integers(3, 200, size=40), 3)
    assert report.measure(model, tokens, prefix=[1]) == report.measure(plain, tokens, prefix=[1])
    models.known_head(model)
    assert [m.training for m in model.modules()] == modes

    memory = liftcore.absorb(*loaded, TEXT, config=CONFIG, progress=False)
    answers = memory.ask("Who?"), memory.complete("Marta", max_new_tokens=12)
    prepare(memory.model)
    modes = [m.training for m in memory.model.modules()]
    assert (memory.ask("Who?"), memory.complete("Marta", max_new_tokens=12)) == answers
    again = liftcore.absorb(*loaded, TEXT, config=CONFIG, progress=False)
    assert torch.equal(again.adapter.values, memory.adapter.values)
    assert again.report == memory.report
    again.adapter.remove()
    memory.adapter.install()
    assert [m.training for m in memory.model.modules()] == modes


def test_a_model_without_a_cache_is_measured(rng):
    """It reads all again for each token, as Mamba and others do."""
    seed = int(rng.integers(1 << 30))
    model, same = (tiny_model(seed=seed, initializer_range=0.2) for _ in range(2))
    ids = torch.from_numpy(rng.integers(3, 200, size=(3, 9)))
    body, real, caches = models.body(model), models.body(model).forward, []

    def without(*args, **kwargs):
        caches.append(kwargs.get("past_key_values"))
        out = real(*args, **{**kwargs, "use_cache": False, "past_key_values": None})
        return BaseModelOutputWithPast(out.last_hidden_state)

    body.forward = without
    assert torch.equal(greedy(model, ids, 8), greedy(same, ids, 8))
    assert set(caches) == {None}


def test_a_mamba_is_trained_and_measured(tokenizer):
    import transformers

    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, state_size=4
    )
    model = transformers.AutoModelForCausalLM.from_config(config, **dtype_keyword(torch.float32))
    memory = liftcore.absorb(model, tokenizer, TEXT, config=CONFIG, progress=False)
    assert memory.report.positions and isinstance(memory.complete("Marta"), str)
    ids = torch.tensor([tokenizer(TEXT)["input_ids"][:8]])
    for token in greedy(memory.model.eval(), ids, 4)[0]:
        assert model(input_ids=ids, use_cache=False).logits[0, -1].argmax() == token
        ids = torch.cat([ids, token.view(1, 1)], dim=1)


def test_memories_of_one_model_answer_for_themselves_in_threads(loaded):
    texts = [TEXT, TEXT[::-1], TEXT.upper()]
    made = [liftcore.absorb(*loaded, t, config=CONFIG, progress=False) for t in texts]
    right = [m.complete("Marta", max_new_tokens=8) for m in made]
    assert len(set(right)) > 1, "they must differ for this to show something"
    wrong = []

    def asks(memory, answer):
        for _ in range(8):
            said = memory.complete("Marta", max_new_tokens=8)
            if said != answer:
                wrong.append(said)

    def merges():
        from liftcore.memory import merged

        for _ in range(4):
            merged(made[0].adapter)

    threads = [threading.Thread(target=asks, args=pair) for pair in zip(made, right, strict=True)]
    threads.append(threading.Thread(target=merges))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_question_waits_for_a_run_on_the_same_model(loaded):
    memory = liftcore.absorb(*loaded, TEXT, config=CONFIG, progress=False)
    answer = memory.complete("Marta", max_new_tokens=8)
    longer = CONFIG.replace(epochs=20)
    right = liftcore.absorb(*loaded, TEXT[::-1], config=longer, progress=False).adapter.values
    made, said = [], []
    thread = threading.Thread(
        target=lambda: made.append(
            liftcore.absorb(*loaded, TEXT[::-1], config=longer, progress=False)
        )
    )
    thread.start()
    while thread.is_alive():
        said.append(memory.complete("Marta", max_new_tokens=8))
    assert set(said) <= {answer}
    assert torch.equal(made[0].adapter.values, right)
