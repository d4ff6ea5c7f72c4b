"""Answers are greedy, whatever a model's generation_config says."""

import pytest
from tiny import tiny_model

from liftcore import answer
from liftcore.questions.self_study import SelfStudy


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_model(vocab_size=len(tokenizer), pad_token_id=2, max_position_embeddings=512)


SETTINGS = [
    dict(repetition_penalty=0.05),
    dict(repetition_penalty=1.8),
    dict(no_repeat_ngram_size=1),
    dict(do_sample=True, temperature=5.0, top_k=3, top_p=0.5, min_p=0.1),
    dict(num_beams=3, length_penalty=2.0, early_stopping=True),
    dict(min_new_tokens=5, max_length=7, max_new_tokens=3),
    dict(suppress_tokens=list(range(0, 40000, 2))),
    dict(bad_words_ids=[[i] for i in range(1, 30000)]),
    dict(forced_eos_token_id=5, exponential_decay_length_penalty=(1, 3.0)),
    dict(num_return_sequences=1, prompt_lookup_num_tokens=3, return_dict_in_generate=True),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: next(iter(s)))
def test_greedy_inherits_nothing(model, tokenizer, settings, monkeypatch):
    ids = tokenizer("Marta keeps bees on the roof")["input_ids"]
    plain = answer.generate(model, tokenizer, ids, 12)
    import torch

    prompt = torch.tensor([ids])
    assert plain == tokenizer.decode(answer.greedy(model, prompt, 12)[0], skip_special_tokens=True)
    own = model.generation_config
    odd = type(own)(**{**own.to_dict(), **settings})
    monkeypatch.setattr(model, "generation_config", odd)
    assert answer.generate(model, tokenizer, ids, 12) == plain
    assert model.generation_config is odd
    study = SelfStudy(model, tokenizer, "One. Two.", kinds=("summary",))
    prompts = [[("user", "Marta keeps bees")], [("user", "Who keeps bees on the roof?")]]
    assert model.generation_config is odd
    with study._ready():
        made = study._generate(prompts, 8)
    monkeypatch.setattr(model, "generation_config", own)
    with study._ready():
        assert study._generate(prompts, 8) == made
