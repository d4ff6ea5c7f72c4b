"""Invented documents: facts stated once, clean prose, and little shared between seeds."""

import re
import secrets
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from liftcore.fiction.documents import MAX_WORDS, MIN_WORDS, fictional_document, questions

# Fresh seeds each run; a failure names its seed, and fictional_document(seed) brings it back.
SEEDS = [secrets.randbelow(10**9) for _ in range(30)]
KINDS = {"person", "place", "number", "date", "object"}
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@pytest.fixture(scope="module")
def documents():
    return {seed: fictional_document(seed) for seed in SEEDS}


# Parallel workers draw their own seeds, so the tests are named by place.
@pytest.fixture(params=range(len(SEEDS)))
def fiction(request, documents):
    seed = SEEDS[request.param]
    print("seed", seed)
    return documents[seed]


def sentences(text):
    _title, *paragraphs = text.split("\n\n")
    return [SENTENCE_END.split(paragraph) for paragraph in paragraphs]


def five_grams(text):
    words = re.findall(r"[\w'-]+", text.lower())
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def check_facts(fiction):
    lines = [s for paragraph in sentences(fiction.text) for s in paragraph]
    for fact in fiction.facts:
        assert fiction.text.count(f"{fact.cue} {fact.answer}") == 1, fact
        assert fiction.text.count(fact.cue) == 1, fact
        assert fiction.text.count(fact.answer) == 1, fact
        assert fact.kind in KINDS
        assert 1 <= len(fact.answer.split()) <= 4, fact
        assert fact.answer.lower() not in fact.question.lower(), fact
        (sentence,) = [s for s in lines if s.startswith(f"{fact.cue} {fact.answer}")]
        cue, all_words = len(fact.cue.split()), len(sentence.split())
        assert cue >= 6, fact
        assert 2 * (cue + len(fact.answer.split())) >= all_words, sentence
        if fact.kind == "date":
            assert re.fullmatch(r"(\d{1,2} [A-Z][a-z]+ )?1[6-9]\d\d", fact.answer), fact
        if fact.kind == "number":
            assert re.match(r"[\d,]+ ", fact.answer), fact
        if fact.kind == "person":
            assert re.fullmatch(r"[A-Z][a-z]+ [A-Z][a-z]+", fact.answer), fact


def check_prose(text):
    assert "  " not in text and not re.search(r"[ \t]$", text, re.M)
    assert not re.search(r"[{}\[\]#/|*_]", text)
    assert not re.search(r" [,.;:?!]|[,;:.]{2}|\(n\)", text)
    for paragraph in sentences(text):
        assert 4 <= len(paragraph) <= 7, paragraph
        for sentence in paragraph:
            assert re.match(r"[A-Z]", sentence), sentence
            assert sentence.endswith("."), sentence
    for article, word in re.findall(r"\b(an?) ([\w-]+)", text, re.I):
        vowel = bool(re.match(r"[aeiou]|hour|honest|heir|8|11\b|18\b", word, re.I))
        vowel = vowel and not re.match(r"one\b|once\b|use|uni|eu", word, re.I)
        assert (article.lower() == "an") == vowel, f"{article} {word}"
    assert not re.search(r"\b(\w+) \1\b", text), re.search(r"\b(\w+) \1\b", text)


def test_facts_are_stated_once(fiction):
    check_facts(fiction)


def test_facts_are_many_and_spread(fiction):
    assert len(fiction.facts) >= 14
    places = [fiction.text.index(fact.cue) / len(fiction.text) for fact in fiction.facts]
    assert places == sorted(places)
    for eighth in range(8):
        assert any(eighth <= 8 * place < eighth + 1 for place in places), eighth
    assert {fact.kind for fact in fiction.facts} >= {"person", "number", "date"}
    assert len({fact.question for fact in fiction.facts}) == len(fiction.facts)


def test_prose_is_clean(fiction):
    check_prose(fiction.text)
    assert fiction.text.startswith(fiction.title + "\n\n")
    everything = [s for paragraph in sentences(fiction.text) for s in paragraph]
    assert len(set(everything)) == len(everything)


def test_length(fiction):
    assert 0.9 * 1550 <= len(fiction.text.split()) <= 1.1 * 1550


@pytest.mark.parametrize("words", [400, 401, 650, 900, 1350, 1700, 1701, 2500, 3400, 3401, 5000])
def test_other_lengths(words):
    for seed in SEEDS[:3]:
        print("seed", seed)
        fiction = fictional_document(seed, words)
        assert 0.9 * words <= len(fiction.text.split()) <= 1.1 * words
        assert len(fiction.facts) >= max(4, words / 100)
        check_facts(fiction)
        check_prose(fiction.text)


@pytest.mark.parametrize("words", [-1, 0, MIN_WORDS - 1, MAX_WORDS + 1])
def test_length_out_of_range(words):
    with pytest.raises(ValueError, match="words"):
        fictional_document(0, words)


def test_questions(fiction):
    asked = questions(fiction)
    assert len({question.question for question in asked}) == len(asked)
    by_kind = {}
    for question in asked:
        assert re.fullmatch(r"[A-Z][^{}\[\]|]*\?", question.question), question
        assert question.answer and "{" not in question.answer
        by_kind.setdefault(question.kind, []).append(question)
    assert set(by_kind) == {"single", "two", "timeline", "unanswerable"}
    assert min(map(len, by_kind.values())) >= 3
    assert [q.answer for q in by_kind["single"]] == [fact.answer for fact in fiction.facts]
    assert {q.answer for q in by_kind["unanswerable"]} == {"not stated"}
    for question in by_kind["timeline"]:
        first, second = re.fullmatch(
            r"Which came first, (.+) or (.+)\?", question.question
        ).groups()
        assert question.answer in (first, second) and first != second
    # A question on two facts asks for a derived number, or reaches one fact through another.
    for question in by_kind["two"]:
        assert re.fullmatch(r"\d+( years| days)?", question.answer) or any(
            question.answer == fact.answer for fact in fiction.facts
        ), question


def test_gaps_and_order_agree(fiction):
    """For the same two events, the gap and the question of order rest on dates of the text."""
    months = {date(2000, m, 1).strftime("%B"): m for m in range(1, 13)}
    moments = []
    for fact in fiction.facts:
        if fact.kind == "date":
            *day, year = fact.answer.split()
            moments.append(date(int(year), months[day[1]], int(day[0])) if day else int(year))
    gaps = set()
    for a in moments:
        for b in moments:
            gap = abs(a - b)
            gaps.add(f"{gap} years" if isinstance(gap, int) else f"{gap.days} days")
    for question in questions(fiction):
        if question.kind == "two" and question.answer.endswith((" years", " days")):
            assert question.answer in gaps, question


def test_same_seed_same_document():
    """In another process as well, where string hashes differ."""
    seed = SEEDS[0]
    code = f"from liftcore.fiction.documents import *; print(fictional_document({seed}).text)"
    root = Path(__file__).resolve().parents[2]
    other = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert fictional_document(seed) == fictional_document(seed)
    assert other.stdout == fictional_document(seed).text + "\n"


def test_seeds_share_little(documents):
    """Measured on 60 seeds a genre: 29 to 32 % of the word 5-grams on average, at most 52 %."""
    seeds = sorted(documents)
    grams = {seed: five_grams(documents[seed].text) for seed in seeds}
    alike = []
    for i, a in enumerate(seeds):
        for b in seeds[i + 1 :]:
            share = len(grams[a] & grams[b]) / min(len(grams[a]), len(grams[b]))
            if a % 3 == b % 3:
                alike.append(share)
                assert share < 0.6, (a, b)
            else:
                assert share < 0.05, (a, b)
            answers = {fact.answer for fact in documents[a].facts if fact.kind == "person"}
            others = {fact.answer for fact in documents[b].facts if fact.kind == "person"}
            assert len(answers & others) <= 1, (a, b)
    assert sum(alike) / len(alike) < 0.4


def test_three_genres():
    openings = [fictional_document(seed).facts[0].question for seed in range(3)]
    assert len({opening.split()[-1] for opening in openings}) == 3
    titles = {fictional_document(seed).title for seed in range(12)}
    assert len(titles) == 12
