"""What long jobs say where standard error is no terminal: plain lines now and then, or nothing."""

import re
import time

import pytest
import torch
from bees import TEXT

import liftcore
from liftcore.config import LiftConfig
from liftcore.sft import sft
from liftcore.training import progress as lines
from liftcore.training.log import Progress

CONFIG = LiftConfig(segment_length=24, epochs=6, rank=4, batch_size=1)
LONG = TEXT.replace("bees", "bees and goats") * 12


def said(capfd) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("liftcore: ")]


def shares(said_lines: list[str]) -> list[int]:
    """The shares of the way, in percent, that lines of training name."""
    return [int(m[1]) for line in said_lines if (m := re.match(r"liftcore: +(\d+)% ", line))]


JOBS = {
    "absorb": lambda model, tokenizer, corpus, **how: liftcore.absorb(
        model, tokenizer, LONG, config=CONFIG, **how
    ),
    "absorb with questions": lambda model, tokenizer, corpus, **how: liftcore.absorb(
        model, tokenizer, LONG, config=CONFIG, qa=[("Who keeps bees?", "Marta")], **how
    ),
    "sft": lambda model, tokenizer, corpus, **how: sft(
        model, tokenizer, corpus, config=CONFIG.replace(objectives=("segments", "qa")), **how
    ),
}


@pytest.mark.parametrize("job", JOBS)
def test_training_prints_a_line_each_tenth_of_the_way(job, loaded, corpus, capfd):
    JOBS[job](*loaded, corpus)
    heard = said(capfd)
    percents = shares(heard)
    assert percents == sorted(percents) and percents[-1] == 100
    tenths = [p // 10 for p in percents]
    assert len(set(tenths)) == len(tenths) >= 8, heard
    assert not any("\r" in line or "\x1b" in line for line in heard)


@pytest.mark.parametrize("job", JOBS)
def test_nothing_is_printed_without_progress(job, loaded, corpus, capfd, monkeypatch):
    monkeypatch.setattr(lines, "SILENCE", 0.0)
    JOBS[job](*loaded, corpus, progress=False)
    assert not said(capfd)


def test_questions_of_the_model_itself_are_counted(loaded, capfd):
    config = CONFIG.replace(objectives=("segments", "qa"), qa_kinds=("quiz", "gap"))
    liftcore.absorb(*loaded, LONG, config=config, qa="self")
    counted = [line for line in said(capfd) if "making questions" in line]
    assert counted and re.search(r"(\d+) of \1$", counted[-1])


def test_estimate_says_how_far_it_is(loaded, capfd):
    liftcore.estimate(loaded[0], 400, CONFIG)
    assert any("measuring this machine" in line for line in said(capfd))
    liftcore.estimate(loaded[0], 400, CONFIG, progress=False)
    assert not said(capfd)


def test_a_long_silence_is_broken(capfd, monkeypatch):
    """Also when nothing is heard of a job: one step may take longer than a minute."""
    monkeypatch.setattr(lines, "SILENCE", 0.3)
    with lines.ProgressLine() as line:
        line.say("waiting for questions")
        time.sleep(1.5)
    heard = said(capfd)
    assert 3 <= len(heard) <= 7 and all("waiting for questions" in each for each in heard)
    time.sleep(0.7)
    assert not said(capfd), "a line after the end"


def test_a_reader_that_went_away_ends_nothing(loaded, monkeypatch):
    class Gone:
        def isatty(self):
            return False

        def write(self, text):
            raise BrokenPipeError

        flush = write

    monkeypatch.setattr("sys.stderr", Gone())
    assert JOBS["absorb"](*loaded, None).training.steps


def test_no_line_before_it_is_due(capfd):
    """Ten thousand quick steps are no ten thousand lines."""
    with lines.ProgressLine(1, torch.device("cpu")) as line:
        for n in range(10_000):
            line.update(Progress(0, n + 1, 10_000, n + 1, 0.001 * (n + 1), 1.0, 0.1))
    assert shares(said(capfd)) == list(range(10, 101, 10))
