"""What each objective makes of a document, token by token."""

import numpy as np
import pytest

from liftcore import answer
from liftcore.config import LiftConfig
from liftcore.errors import LiftError, UsageError
from liftcore.objectives.build import pair_sources
from liftcore.objectives.qa import QuestionAnswering
from liftcore.objectives.recitation import Recitation
from liftcore.objectives.segments import Segments
from liftcore.questions.pairs import GivenPairs, Pair
from liftcore.segments import cut

TEXT = "Marta Quellin keeps bees on the roof of the old mill. Every June she gives the honey away. "
CONFIG = LiftConfig(segment_length=16, epochs=2, rank=4)
PAIRS = [Pair("Who keeps bees?", "Marta Quellin"), Pair("When is the honey given away? ", " June.")]


@pytest.fixture(params=["chat", "plain", "plain with BOS"])
def words(request, tokenizer):
    """A tokenizer with a chat template, one without, and one that also begins every text."""
    import copy

    found = copy.deepcopy(tokenizer)
    if request.param != "chat":
        found.chat_template = None
    if request.param == "plain with BOS":
        found = WithBos(found)
    return found


class WithBos:
    """A tokenizer that puts its BOS before a text, as Llama's does."""

    bos_token_id = 1

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, text, add_special_tokens=True, **options):
        ids = self.inner(text, add_special_tokens=False, **options)["input_ids"]
        return {"input_ids": [1, *ids] if add_special_tokens else ids}

    def __getattr__(self, name):
        return getattr(self.inner, name)


def tokens_of(tokenizer, text=TEXT):
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"])


def scored(tokenizer, sample):
    """(what is not scored, what is scored) as text; scored tokens must be the last ones."""
    first = int(np.flatnonzero(sample.weights)[0])
    assert (sample.weights[first:] == 1).all() and sample.ids.dtype == np.int32
    assert sample.weights.dtype == np.float32 and sample.soft is None
    return tokenizer.decode(sample.ids[:first]), tokenizer.decode(sample.ids[first:])


@pytest.mark.parametrize("prefix", [[], [1]])
@pytest.mark.parametrize("overlap_loss", ["all", "new", "mean"])
def test_segments_are_those_of_the_cut(rng, prefix, overlap_loss):
    tokens = rng.integers(3, 200, size=50)
    config = CONFIG.replace(schedule="overlap", stride=6, overlap_loss=overlap_loss)
    p, total = len(prefix), np.zeros(50)
    segments = cut(50, config, 1)
    samples = Segments(tokens, config, prefix).samples(1)
    assert len(samples) == len(segments)
    for i, sample in enumerate(samples):
        start, stop = segments.start[i], segments.stop[i]
        assert sample.ids.tolist() == [*prefix, *tokens[start:stop]]
        right = [0.0] * p + segments.weights[i].tolist()
        if not p:
            right[0] = 0.0
        assert sample.weights.tolist() == right and sample.source == "segments"
        total[start:stop] += sample.weights[p:]
    if p and overlap_loss != "all":
        assert total == pytest.approx(1)


def test_segments_move_between_epochs(rng):
    found = Segments(rng.integers(3, 200, size=80), CONFIG, [])
    lengths = [[len(s) for s in found.samples(e)] for e in (0, 1, 0)]
    assert lengths[0] == lengths[2] != lengths[1]


def test_an_answer_and_the_end_of_the_turn_are_scored(words):
    objective = QuestionAnswering(words, "Bees", tokens_of(words), [GivenPairs(PAIRS)], CONFIG, 256)
    samples = objective.samples(0)
    assert [s.source for s in samples] == ["qa", "qa"] and objective.done
    end = words.decode(words.eos_token_id)
    lead = "" if words.chat_template else " "
    samples.sort(key=lambda sample: "Who" not in words.decode(sample.ids))
    prompt, target = scored(words, samples[0])
    assert target == f"{lead}Marta Quellin{end}"
    assert scored(words, samples[1])[1] == f"{lead}June.{end}"
    asked = answer.question_ids(words, "Bees", "", "Who keeps bees?")
    assert samples[0].ids[: len(asked)].tolist() == asked, "training asks as asking does"
    assert 'about "Bees"' in prompt and "Who keeps bees?" in prompt and "roof" not in prompt
    assert (samples[0].ids[0] == 1) == isinstance(words, WithBos) or words.chat_template


def test_the_truncated_document_may_stand_in_the_prompt(words):
    tokens = tokens_of(words, " ".join(f"word{i}" for i in range(300)))
    config = CONFIG.replace(qa_context="truncated")
    made = QuestionAnswering(words, "Bees", tokens, [GivenPairs(PAIRS)], config, 200)
    for sample, pair in zip(made.samples(0), PAIRS, strict=True):
        prompt, target = scored(words, sample)
        assert "word0 word1 " in prompt and "word299" in prompt and "\n...\n" in prompt
        assert pair.question.strip() in prompt and pair.answer.strip() in target
        assert 180 <= len(sample) <= 200, "it fills the window"


def test_a_window_too_small_for_the_document_still_has_the_question(words):
    config = CONFIG.replace(qa_context="truncated")
    made = QuestionAnswering(words, "Bees", tokens_of(words), [GivenPairs(PAIRS)], config, 30)
    prompt, _ = scored(words, made.samples(0)[0])
    assert "Who keeps bees?" in prompt and "roof" not in prompt


@pytest.mark.parametrize("window", [256, 120, 75])
def test_recitation_scores_the_segment_only(words, window):
    text = TEXT * 12
    tokens = tokens_of(words, text)
    made = Recitation(words, "Bees", tokens, CONFIG, window)
    segments = cut(len(tokens), CONFIG, 1)
    samples = made.samples(1)
    assert len(samples) == len(segments)
    for i, sample in enumerate(samples):
        passage = tokens[segments.start[i] : segments.stop[i]]
        assert sample.ids[-len(passage) :].tolist() == passage.tolist()
        prompt, target = scored(words, sample)
        assert target == words.decode(passage) and sample.source == "recitation"
        assert f"Recite passage {i + 1} of {len(samples)}." in prompt and '"Bees"' in prompt
        assert len(sample) <= window
    if window == 256:
        head, tail = made.text.split("\n...\n")
        assert text.startswith(head) and text.endswith(tail), "the document's head and tail"
        assert max(map(len, samples)) > 230, "it fills the window"


def test_recitation_shows_no_more_than_it_was_told_to(tokenizer):
    tokens = tokens_of(tokenizer, TEXT * 6)
    few = Recitation(tokenizer, "Bees", tokens, CONFIG.replace(recite_context=40), 256)
    assert len(tokens_of(tokenizer, few.text)) <= 46 and "..." in few.text
    none = Recitation(tokenizer, "Bees", tokens, CONFIG.replace(recite_context=0), 256)
    assert none.text == ""
    whole = Recitation(tokenizer, "Bees", tokens_of(tokenizer), CONFIG, 256)
    assert whole.text == TEXT
    with pytest.raises(UsageError, match="no room"):
        Recitation(tokenizer, "Bees", tokens, CONFIG, 40)


def test_recitation_keeps_the_weights_of_the_overlap(tokenizer):
    tokens = tokens_of(tokenizer, TEXT * 3)
    config = CONFIG.replace(schedule="overlap", stride=6, overlap_loss="mean")
    made = Recitation(tokenizer, "Bees", tokens, config, 256)
    for sample, own in zip(made.samples(0), cut(len(tokens), config, 0).weights, strict=True):
        assert sample.weights[-len(own) :].tolist() == own.tolist()
        assert not sample.weights[: -len(own)].any()


def test_pairs_may_be_given_in_several_ways(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text('{"question": "Who?", "answer": "Marta"}\n')
    source = GivenPairs([])
    assert pair_sources(str(file))[0].poll() == [Pair("Who?", "Marta")]
    assert pair_sources([("Who?", "Marta")])[0].poll() == [Pair("Who?", "Marta")]
    said = {"question": "Who?", "answer": "Marta"}
    assert pair_sources([said])[0].poll() == [Pair("Who?", "Marta")]
    for wrong in ([("Who?",)], ["pairs.jsonl"], [("Who?", "")], [{"question": "Who?"}]):
        with pytest.raises(UsageError, match="pair 1"):
            pair_sources(wrong)
    assert pair_sources(PAIRS)[0].poll() == PAIRS
    assert pair_sources(source) == [source] and pair_sources([source, source]) == [source] * 2
    file.write_text('{"question": "Who?", "answer": "Marta"}\n{"question": 3}\n')
    with pytest.raises(LiftError, match="line 2"):
        pair_sources(file)


def test_the_end_of_a_turn(tokenizer):
    import copy

    assert answer.end_of_turn(tokenizer) == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    odd = copy.deepcopy(tokenizer)
    odd.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_start|>{% endfor %}"
    )
    assert answer.end_of_turn(odd) == [tokenizer.convert_tokens_to_ids("<|im_start|>")]
    odd.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert answer.end_of_turn(odd) == [tokenizer.eos_token_id]


def test_the_settings_of_objectives():
    config = LiftConfig(objectives=["segments", "qa"], mix=[1, 0.5])
    assert config.objectives == ("segments", "qa") and config.weights == (1, 0.5)
    for wrong in (
        dict(objectives=("x",)),
        dict(objectives=()),
        dict(objectives=("qa", "qa")),
        dict(mix=(1.0, 2.0)),
        dict(mix=(0.0,)),
        dict(mix=(float("nan"),)),
        dict(objectives=("qa",), segment_epochs=1),
        dict(segment_epochs=12),
        dict(qa_context="all"),
        dict(recite_context=-1),
        dict(qa_first=3),
        dict(qa_kinds=("poem",)),
        dict(qa_kinds=()),
    ):
        with pytest.raises(UsageError):
            LiftConfig(**wrong)


def test_presets():
    plain, memorize = LiftConfig(), LiftConfig.preset("memorize")
    assert (plain.adapter_init, plain.train_a, plain.layers) == ("random", True, None)
    assert (memorize.adapter_init, memorize.train_a, memorize.layers) == ("document", False, 0.5)
    assert memorize.target_tokens == memorize.segment_length < plain.segment_length
    assert LiftConfig.preset("memorize", segment_length=256).target_tokens == 256
    large = LiftConfig.preset("large")
    assert large.adapter_init == "document" and large.segment_length > memorize.segment_length
    assert large.learning_rate < memorize.learning_rate and LiftConfig.preset("plain") == plain
    for name in ("plain", "paper", "paper-v1", "paper-v4"):
        assert LiftConfig.preset(name).adapter_init == "random" and LiftConfig.preset(name).train_a
    understand = LiftConfig.preset("understand")
    assert (understand.objectives, understand.mix) == (("segments", "qa", "replay"), (1, 4, 2))
    assert understand.adapter_init == "document" and 0 < understand.replay_share < 0.5
    assert understand.qa_kinds == ("quiz",)
    alone = LiftConfig.preset("understand", objectives=("segments",))
    assert alone.weights == (1,) and alone.rank == understand.rank
    recited = LiftConfig.preset("understand", objectives=("recitation", "qa"))
    assert recited.weights == (1, 4), "questions keep their weight"
    v4, v1 = LiftConfig.preset("paper-v4"), LiftConfig.preset("paper-v1", seed=3)
    assert v4 == LiftConfig.paper(objectives=("segments", "qa"))
    assert (v4.rank, v4.lora_alpha, v4.learning_rate, v4.epochs) == (128, 256, 5e-5, 5)
    assert (v4.qa_context, v1.qa_context) == ("none", "truncated")
    assert (v1.segment_epochs, v1.epochs, v1.learning_rate, v1.seed) == (2, 5, 1e-5, 3)
    with pytest.raises(UsageError, match="preset"):
        LiftConfig.preset("best")
