"""What a run over many documents says while it goes, and at its end."""

import shlex
import time

from liftcore.cli.corpus import _print
from liftcore.corpus import jobs
from liftcore.corpus.run import Summary, _Run
from liftcore.corpus.store import Store
from liftcore.corpus.work import Going, Made


def test_the_time_left_is_reckoned_from_what_was_made(tmp_path, monkeypatch):
    """Documents that fail at once say nothing about those that are trained."""
    shown, store, now = [], Store(str(tmp_path)), [50.0]

    class Line:
        def count(self, what, done, of, more):
            shown.append(more)

    sizes = {"broken": 300, "bees": 100, "goats": 200}
    waiting = [jobs.Job(f"{t}.txt", t, None, t, size) for t, size in sizes.items()]
    run = _Run(Summary(str(tmp_path)))
    run.begin(store, len(waiting), Line())
    run.sizes, run.size, run.started = sizes, sum(sizes.values()), 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    run.note(Made(waiting[0], None, "damaged"))
    assert shown == [", 1 failed"]
    entry = {"title": "bees", "folder": "bees", "path": "bees.txt"}
    run.note(Made(waiting[1], entry, token_passes=1000))
    assert shown[1] == ", 1 failed  20 tokens/s  0:01:40 left"
    # One that goes on was half done before: what this run makes of it are 50 bytes and 300 tokens.
    run.note(Going({"goats": (0, 0.5)}))
    assert shown[2] == ", 1 failed  20 tokens/s  0:00:50 left"
    now[0] = 60.0
    run.note(Going({"goats": (300, 0.75)}))
    assert shown[3] == ", 1 failed  22 tokens/s  0:00:20 left"
    now[0] = 80.0
    entry = {"title": "goats", "folder": "goats", "path": "goats.txt"}
    run.note(Made(waiting[2], entry, token_passes=1200))
    assert shown[4] == ", 1 failed  20 tokens/s  0:00:00 left"


def test_the_command_that_is_named_at_the_end_can_be_copied(tmp_path, capsys):
    for out in (f"{tmp_path.as_uri()}/a b", "memories"):
        _print(Summary(out))
        line = capsys.readouterr().out.splitlines()[-1]
        assert shlex.split(line) == ["next:", "liftcore", "ask", out, "your question"]
