"""The metrics: hand-computed cases, and against another implementation where there is one."""

import random
import sys
import types

import pytest
import torch
import transformers
from errors_and_seeds import fresh_seed

from bench.evaluations import metrics
from bench.evaluations.metrics import (
    bleu,
    classification,
    code_similarity,
    contains,
    count,
    exact_match,
    first_line,
    normalise,
    retrieval,
    rouge_l,
    token_f1,
)

WORDS = ("amber", "bridge", "canal", "dune", "ember", "fjord", "grove", "inlet", "jetty", "kiln")


def sentences(number: int, repeats: bool):
    """Pairs of random sentences that share words; without repeats no word comes twice in one."""
    rng = random.Random(fresh_seed().initial_seed())
    draw = (lambda n: rng.choices(WORDS, k=n)) if repeats else (lambda n: rng.sample(WORDS, n))
    return [(" ".join(draw(rng.randint(4, 9))), " ".join(draw(rng.randint(4, 9))))
            for _ in range(number)]  # fmt: skip


def test_normalise_drops_case_punctuation_articles_and_space():
    assert normalise("The  Cat's\n a hat, an ox.") == "cats hat ox"
    assert normalise("another theatre") == "another theatre"  # articles only as whole words
    assert normalise("U.S.A.") == "usa"
    assert normalise("the") == ""


def test_exact_match():
    assert exact_match("The Harbour!", "harbour") == 1
    assert exact_match("the harbours", "harbour") == 0
    assert exact_match("Kiln.", ["dune", "a kiln"]) == 1
    assert exact_match("anything", []) == 0


def test_token_f1_by_hand():
    assert token_f1("the cat sat", "a cat sat down") == pytest.approx(2 * 2 / (2 + 3))
    assert token_f1("cat cat cat", "cat dog") == pytest.approx(2 * 1 / (3 + 2))  # bags, not sets
    assert token_f1("dune", ["kiln", "dune grove", "dune"]) == 1
    assert token_f1("dune", "kiln") == 0
    assert token_f1("", "kiln") == 0 and token_f1("the", "an") == 1


def test_token_f1_agrees_with_its_definition_word_by_word():
    for said, wanted in sentences(40, repeats=True):
        left, same = wanted.split(), 0
        for word in said.split():
            if word in left:
                left.remove(word)
                same += 1
        precision, recall = same / len(said.split()), same / len(wanted.split())
        f1 = 2 * precision * recall / (precision + recall) if same else 0
        assert token_f1(said, wanted) == pytest.approx(f1)
        assert token_f1(said, wanted) == token_f1(wanted, said)


def test_contains_looks_for_whole_words():
    assert contains("It was the Old Kiln, in 1904.", "old kiln") == 1
    assert contains("the party", "art") == 0
    assert contains("kiln old", "old kiln") == 0
    assert contains("born in 1904", ["1905", "1904"]) == 1
    assert contains("anything", "the") == 0  # an answer of articles stands in nothing


def test_rouge_l_by_hand():
    pytest.importorskip("rouge")
    # The longest common subsequence is "police killed gunman"; 3 of 5 words found, 3 of 4 wanted.
    said, wanted = "police today killed every gunman", "police killed another gunman"
    assert rouge_l(said, wanted) == pytest.approx(2 * 3 / (5 + 4), abs=1e-6)
    assert rouge_l(said, wanted, part="r") == pytest.approx(3 / 4)
    assert rouge_l("gunman killed police", "police killed gunman") == pytest.approx(1 / 3, abs=1e-6)
    assert rouge_l(said, ["unrelated", said]) == pytest.approx(1, abs=1e-6)


def test_rouge_l_of_what_has_no_words_and_of_long_texts():
    pytest.importorskip("rouge")
    for empty in ("", " ", "...", " . . "):
        assert rouge_l(empty, "kiln") == 0 and rouge_l("kiln", empty) == 0
    limit = sys.getrecursionlimit()
    long = " ".join(f"w{i}" for i in range(1500))  # no full stop: one sentence
    assert rouge_l(long, "w3 w700 w1499", part="r") == 1
    assert sys.getrecursionlimit() == limit


def test_rouge_l_agrees_with_rouge_score():
    pytest.importorskip("rouge")
    package = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = package.RougeScorer(["rougeL"])
    for said, wanted in sentences(20, repeats=False):  # `rouge` counts a repeated word once
        other = scorer.score(wanted, said)["rougeL"]
        assert rouge_l(said, wanted) == pytest.approx(other.fmeasure, abs=1e-6)
        assert rouge_l(said, wanted, part="r") == pytest.approx(other.recall, abs=1e-6)


def test_bleu_by_hand():
    pytest.importorskip("nltk")
    assert bleu("a b c d", "a b x d") == pytest.approx(3 / 4)
    assert bleu("a a a", "a b c") == pytest.approx(1 / 3)  # clipped
    assert bleu("a b", "a b c d") == pytest.approx(2.718281828 ** (1 - 4 / 2))  # brevity
    assert bleu("a b c d e", "a b c d x", order=4) == pytest.approx(1 / 2)
    assert bleu("a b c", "a b c", order=4) == 0 and bleu("", "a") == 0


def test_bleu_agrees_with_sacrebleu():
    pytest.importorskip("nltk")
    sacrebleu = pytest.importorskip("sacrebleu")
    kind = dict(smooth_method="none", tokenize="none", force=True)
    first = sacrebleu.metrics.BLEU(max_ngram_order=1, **kind)
    whole = sacrebleu.metrics.BLEU(effective_order=True, **kind)
    for said, wanted in [*sentences(20, repeats=True), ("a b c d e f", "a b c d e f g")]:
        other = whole.sentence_score(said, [wanted])
        assert bleu(said, wanted) == pytest.approx(
            first.sentence_score(said, [wanted]).score / 100, abs=1e-6
        )
        assert bleu(said, wanted, order=4) == pytest.approx(
            other.precisions[3] / 100 * other.bp, abs=1e-6
        )


def test_retrieval_and_count():
    assert retrieval("Paragraph 7", "Paragraph 7") == 1
    assert retrieval("7 or 12, perhaps 7", "Paragraph 7") == pytest.approx(2 / 3)
    assert retrieval("Paragraph 17", "Paragraph 7") == 0
    assert retrieval("none of them", "Paragraph 7") == 0
    assert retrieval("Paragraph 3", ["Paragraph 7", "Paragraph 3"]) == 1
    assert count("There are 4 of 10", "4") == 0.5
    assert count("14", "4") == 0 and count("four", "4") == 0


def test_classification():
    kinds = ["Number", "Number of people", "City", "River"]
    assert classification("City", "City", classes=kinds) == 1
    assert classification("City or River", "City", classes=kinds) == 0.5
    assert classification("River", "City", classes=kinds) == 0
    # "Number" is part of the right answer's name, so naming it is no second guess ...
    assert classification("Number of people", "Number of people", classes=kinds) == 1
    # ... but the longer name is one when the shorter is right.
    assert classification("Number of people", "Number", classes=kinds) == 0.5
    assert classification("City", "City") == 0  # a class that is not known


def test_code_similarity_takes_the_first_line_of_code():
    assert code_similarity("\n\nreturn total\nx = 1", "return total") == 1
    assert (
        code_similarity("```python\n# a comment\n// one too\nreturn total\n```", "return total")
        == 1
    )
    # Ratcliff and Obershelp: twice the matching characters over all of them, here 2·2 / (3 + 3).
    assert code_similarity("abc", "abd") == 0.67
    assert code_similarity("# only a comment", "x") == 0 and code_similarity("", "x") == 0


def test_code_similarity_agrees_with_rapidfuzz_where_one_line_holds_the_other():
    fuzz = pytest.importorskip("rapidfuzz.fuzz")
    rng = random.Random(fresh_seed().initial_seed())
    for _ in range(20):
        line = "".join(rng.sample("abcdefghijklmnopqrstuvwxyz", 20))
        part = line[: rng.randint(1, 19)]
        assert code_similarity(part, line) == pytest.approx(
            fuzz.ratio(part, line) / 100, abs=0.0051
        )


def test_first_line():
    assert first_line("\n\nParis\nPassage: more") == "Paris"
    assert first_line("") == ""


def test_bert_score_hands_texts_model_and_layer_to_the_package(monkeypatch, tmp_path):
    calls = []

    def score(predictions, answers, **options):
        calls.append((predictions, answers, options))
        return torch.tensor([0.125, 0.25]), torch.tensor([0.5, 1]), torch.tensor([0.75, 0.625])

    utils = types.SimpleNamespace(model2layers={"known": 17})
    monkeypatch.setitem(sys.modules, "bert_score", types.SimpleNamespace(score=score))
    monkeypatch.setitem(sys.modules, "bert_score.utils", utils)
    transformers.BertConfig(num_hidden_layers=3).save_pretrained(tmp_path)
    for model in (None, "known", str(tmp_path)):
        assert metrics.bert_score(["a", "b"], ["c", "d"], model=model) == [0.75, 0.625]
    assert [c[:2] for c in calls] == [(["a", "b"], ["c", "d"])] * 3
    assert [c[2] for c in calls] == [
        {"lang": "en"},
        {"model_type": "known"},
        {"model_type": str(tmp_path), "num_layers": 3},
    ]


@pytest.mark.parametrize(
    ("call", "package", "extra"),
    [
        (lambda: rouge_l("a", "b"), "rouge", "eval"),
        (lambda: bleu("a", "b"), "nltk", "eval"),
        (lambda: metrics.bert_score(["a"], ["b"]), "bert_score", "bertscore"),
    ],
)
def test_a_missing_package_is_an_error_that_names_the_extra(call, package, extra, monkeypatch):
    for name in [package, "nltk.translate.bleu_score"]:
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(metrics.MissingPackage, match=rf"{package}: pip install 'liftcore\[{extra}"):
        call()
