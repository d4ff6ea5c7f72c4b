"""Answers are greedy, whatever a model's generation_config says."""

import pytest
import torch
from tiny import tiny_model

from liftcore import answer
from liftcore.questions.self_study import SelfStudy
from liftcore.truncation import truncate


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


def test_a_model_without_a_generation_config_answers(model, tokenizer, monkeypatch):
    ids = tokenizer("Marta keeps bees on the roof")["input_ids"]
    plain = answer.generate(model, tokenizer, ids, 6)
    monkeypatch.setattr(model, "generation_config", None)
    assert answer.generate(model, tokenizer, ids, 6) == plain
    assert len(answer.complete_all(model, tokenizer, ["Marta", "bees"], [3, 4])) == 2
    study = SelfStudy(model, tokenizer, "One. Two.", kinds=("summary",))
    with study._ready():
        study._generate([[("user", "Marta keeps bees")]], 4)


@pytest.mark.parametrize(
    "text",
    ["👍🏿" * 30, "🇫🇷🇩🇪🇮🇹" * 20, "a\r\nb\r\n" * 30, "한\u1112\u1161\u11ab" * 30,
     "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f" * 12],
)  # fmt: skip
def test_a_cut_parts_no_character(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    # Places between what a reader takes for characters.
    unit = {"👍": 2, "🇫": 2, "a": 3, "한": 4, "🏴": 7}[text[0]]
    good = {0, 1, 3} if unit == 3 else {0, 1} if unit == 4 else {0}
    for room in range(4, len(ids) - 10, 5):
        start, _, end = truncate(tokenizer, ids, room).partition("\n...\n")
        assert text.startswith(start) and text.endswith(end)
        assert len(start) % unit in good
        # A cut may begin within a long row of flags, which then are counted from there.
        assert text[0] == "🇫" or (len(text) - len(end)) % unit in good


@pytest.mark.parametrize("new", [1, 2, 9])
def test_the_pieces_of_an_answer_are_the_answer(model, tokenizer, new):
    ids = tokenizer("Marta keeps bees on the roof")["input_ids"]
    pieces = []
    whole = answer.generate(model, tokenizer, ids, new, pieces.append)
    assert "".join(pieces) == whole == answer.generate(model, tokenizer, ids, new)
    assert len(pieces) > 1 or new < 3


def test_no_piece_holds_half_a_character_or_the_end_of_a_turn():
    tokenizer, pieces = byte_fallback(), []
    stream = answer._Stream(tokenizer, pieces.append)
    ids = tokenizer("a漢字👍 b")["input_ids"]
    end = torch.tensor([0])  # <unk>, as a token that ends the turn and is no special one
    for token in (torch.tensor([[1, 2, 3]]), *map(torch.tensor, [[i] for i in ids]), end):
        stream.put(token)
    stream.end()
    stream.say("a漢字👍 b")
    assert "".join(pieces) == "a漢字👍 b" and len(pieces) >= 5
    assert not any("\ufffd" in piece for piece in pieces)


def byte_fallback():
    """A tokenizer that spells what it does not know in bytes, as Llama 2 and Gemma do."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocab = {"<unk>": 0, **{f"<0x{i:02X}>": i + 1 for i in range(256)}}
    whole = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    whole.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="<unk>")


def test_a_cut_within_bytes_spoils_no_character():
    tokenizer, text = byte_fallback(), "漢字の文章👍" * 20
    ids = tokenizer(text)["input_ids"]
    for room in range(4, len(ids) - 10, 3):
        start, _, end = truncate(tokenizer, ids, room).partition("\n...\n")
        assert text.startswith(start) and text.endswith(end)
        assert len((start + end).encode()) <= room


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
