"""Words from outside stay words: no control tokens, and a chat template that shows them."""

import copy
import random

import pytest
from errors_and_seeds import fresh_seed
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from liftcore import answer, document
from liftcore.errors import LiftError
from liftcore.tokens import chat_ids, text_ids
from liftcore.truncation import truncate

PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m['content'] %}"
    "{{ part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def whole_words():
    """A vocabulary of whole words, which holds its own control tokens as words, too."""
    words = ["[UNK]", "</s>", "<turn>", "one", "two", "question"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", eos_token="</s>")


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A tokenizer in Python: a token a character."""
    from transformers import PreTrainedTokenizer

    class Characters(PreTrainedTokenizer):
        vocab_size = 400

        def get_vocab(self):
            return {chr(i): i for i in range(400)} | self.added_tokens_encoder

        def _tokenize(self, text, **options):
            return list(text)

        def _convert_token_to_id(self, token):
            return ord(token) % 400

        def _convert_id_to_token(self, index):
            return chr(index)

        def convert_tokens_to_string(self, tokens):
            return "".join(tokens)

    return Characters(eos_token="<|end|>", pad_token="<|end|>", bos_token="<|start|>")


def special(tokenizer):
    return {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}


def hostile(tokenizer, rng):
    spelled = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
    words = rng.choices(["one", "two", "a-b", *spelled], k=12) + spelled
    rng.shuffle(words)
    return rng.choice([" ", ""]).join(words)


@pytest.mark.parametrize("kind", ["tokenizer", "slow"])
def test_no_text_becomes_a_control_token(kind, request):
    tokenizer = request.getfixturevalue(kind)
    rng = random.Random(fresh_seed().initial_seed())
    text = hostile(tokenizer, rng)
    ids = text_ids(tokenizer, text)
    assert special(tokenizer).isdisjoint(ids), text
    assert tokenizer.decode(ids) == text
    made = document.from_text(text, tokenizer)
    assert made.tokens.tolist() == ids and made.text == text
    asked = answer.question_ids(tokenizer, text, text, text)
    plain = answer.question_ids(tokenizer, "one", "two", "three")
    control = special(tokenizer)
    assert [i for i in asked if i in control] == [i for i in plain if i in control]
    assert tokenizer.decode(asked).count(text) == 3
    reply = answer.reply_ids(tokenizer, text)
    assert control.isdisjoint(reply[:-1]) and reply[-1] in control


@pytest.mark.parametrize("kind", ["tokenizer", "slow"])
def test_a_plain_text_has_the_tokens_that_the_tokenizer_gives(kind, request):
    tokenizer = request.getfixturevalue(kind)
    rng = random.Random(fresh_seed().initial_seed())
    text = "".join(rng.choices("ab .,<|>_\n\téñ", k=300))
    assert text_ids(tokenizer, text) == tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": f"  {text}a\n"}]
        right = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
        assert chat_ids(tokenizer, turns) == right["input_ids"]


def test_a_vocabulary_that_holds_its_control_tokens_as_words(whole_words):
    assert text_ids(whole_words, "one what two") == [3, 0, 4]
    assert 1 not in text_ids(whole_words, "one </s> two")


def test_a_mark_that_only_the_chat_template_knows(tokenizer):
    odd = copy.deepcopy(tokenizer)
    odd.add_tokens(["<|turn|>", "ordinary"])
    mark, word = odd.convert_tokens_to_ids(["<|turn|>", "ordinary"])
    odd.chat_template = "{% for m in messages %}<|turn|>{{ m.content }}{% endfor %}"
    asked = chat_ids(odd, [{"role": "user", "content": "an ordinary <|turn|> here"}])
    assert asked.count(mark) == 1 and asked.count(word) == 1
    assert odd.decode(asked) == "<|turn|>an ordinary <|turn|> here"


def test_a_template_that_wants_parts_gets_them(tokenizer):
    odd = copy.deepcopy(tokenizer)
    odd.chat_template = PARTS
    asked = odd.decode(answer.question_ids(odd, "Bees", "the text", "Who keeps them?"))
    assert "Who keeps them?" in asked and "the text" in asked and "'text'" not in asked
    assert answer.end_of_turn(odd) == answer.end_of_turn(tokenizer)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<|im_start|>{{ m.role }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{{ m.content[:4] }}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}",
        "{{ raise_exception('no user here') }}",
    ],
)
def test_a_template_that_loses_the_question_is_refused(tokenizer, template):
    odd = copy.deepcopy(tokenizer)
    odd.chat_template = template
    with pytest.raises(LiftError, match="chat template"):
        answer.question_ids(odd, "Bees", "", "Who keeps them?")
    with pytest.raises(LiftError, match="chat template"):
        answer.reply_ids(odd, "Marta")


@pytest.mark.parametrize("text", ["a \ud800 b", "\udcff", "half \ud83d"])
def test_half_a_character_is_one_clear_error(tokenizer, text):
    for use in (
        lambda: document.from_text(f"{text}\n", tokenizer),
        lambda: answer.question_ids(tokenizer, text, "", "Who?"),
        lambda: answer.question_ids(tokenizer, "Bees", "", text),
        lambda: answer.reply_ids(tokenizer, text),
    ):
        with pytest.raises(LiftError, match="lone surrogate"):
            use()


def test_a_cut_to_the_window_keeps_characters_whole(tokenizer):
    rng = random.Random(fresh_seed().initial_seed())
    for kind in ("他来了水火山川日月龍", "🙂🎻🐝", "नमस्ते दान दिन ", "e\u0301a\u0308 "):
        text = "".join(rng.choices(kind, k=400))
        tokens = text_ids(tokenizer, text)
        for room in rng.sample(range(8, len(tokens) - 1), 12):
            head, tail = truncate(tokenizer, tokens, room).split("\n...\n")
            assert text.startswith(head) and text.endswith(tail), (room, head, tail)
            assert "\ufffd" not in head + tail
            shorter = truncate(tokenizer, text_ids(tokenizer, text), room)
            assert len(text_ids(tokenizer, shorter)) <= room + 8
    kept = "\ufffd " * 100
    assert truncate(tokenizer, text_ids(tokenizer, kept), 40).count("\ufffd") > 5
