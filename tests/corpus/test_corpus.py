"""A folder of documents becomes a folder of memories, whatever becomes of some of them."""

import functools
import json
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bees import TEXT
from extras import needs
from killing import children, kill
from safetensors.torch import load_file

from liftcore import LiftConfig, memory, report
from liftcore import model as models
from liftcore.adapter import WEIGHTS
from liftcore.cli.main import main
from liftcore.corpus import jobs, pool, work
from liftcore.corpus.jobs import Plan, entries_of
from liftcore.corpus.memories import Memories
from liftcore.corpus.run import corpus as made_of
from liftcore.corpus.store import Store
from liftcore.corpus.work import Made, Worker, known
from liftcore.errors import LiftError
from liftcore.reading import read_file
from liftcore.training.progress import ProgressLine
from liftcore.training.together_runner import TogetherRunner

CONFIG = LiftConfig(segment_length=16, epochs=1, rank=4)
LOAD = functools.cache(models.load)


TEXTS = {
    "bees": TEXT,
    "goats": "The goats of Ansel Borrow graze above the quarry. In winter he feeds them hay.",
    "below/geese": "Geese guard the courtyard of the abbey. Sister Ulla counts them at dusk.",
}

GOATS = "Where do the goats of Ansel Borrow graze?"
ALL = "Do bees on the mill of Marta, goats of Ansel and geese of the abbey courtyard meet?"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pictures, reports and loading take longer than the training here."""
    monkeypatch.setattr(memory, "_has_matplotlib", lambda: False)
    short = functools.partial(report.measure, probes=2, new=4)
    monkeypatch.setattr(report, "measure", short)
    monkeypatch.setattr(models, "load", LOAD)


@pytest.fixture
def documents(tmp_path):
    """Three documents, two with questions; one that is damaged, and one without a word."""
    folder = tmp_path / "corpus"
    (folder / "below").mkdir(parents=True)
    for name, text in TEXTS.items():
        (folder / f"{name}.txt").write_text(text + "\n")
    for name in ("bees", "goats"):
        pair = {"question": f"Who keeps {name}?", "answer": "Marta Quellin"}
        (folder / f"{name}.jsonl").write_text(json.dumps(pair) + "\n")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4\n\x00\x01\xff nothing")
    (folder / "empty.txt").write_text("")
    return folder


@pytest.fixture
def plan(tiny_folder):
    return Plan(str(tiny_folder), CONFIG, device="cpu", dtype="float32")


def copied(monkeypatch, saved_memory):
    """From here on a memory is a copy of this one, and nothing is trained."""

    def absorb(self, job, model, tokenizer, stack, tell):
        if not read_file(Path(job.path)).text.strip():
            raise LiftError("the document is empty")

    def taken(self, job, memory):
        here = self.store.workplace(job.folder)
        shutil.copytree(saved_memory, here)
        info = json.loads((here / "liftcore.json").read_text())
        info["document"]["title"] = job.title
        (here / "liftcore.json").write_text(json.dumps(info))
        return Made(job, known(self.store, job))

    monkeypatch.setattr(Worker, "_load", lambda self: (None, None))
    monkeypatch.setattr(Worker, "places", lambda self: 1)
    monkeypatch.setattr(Worker, "_absorb", absorb)
    monkeypatch.setattr(Worker, "taken", taken)


def index(out):
    return json.loads((out / "memories.json").read_text())["memories"]


def failed(out):
    return [json.loads(line) for line in (out / "failed.jsonl").read_text().splitlines()]


def test_each_document_becomes_a_memory_once(documents, plan, tmp_path, monkeypatch, saved_memory):
    out = tmp_path / "memories"
    summary = made_of(documents, out, plan, progress=False)
    assert [len(x) for x in (summary.made, summary.skipped, summary.failed)] == [3, 0, 2]
    assert {e["title"] for e in index(out)} == {"bees", "goats", "geese"}
    assert {f["title"] for f in failed(out)} == {"broken", "empty"}
    assert all("error" in f and f["path"] for f in failed(out))
    bees = next(e for e in index(out) if e["title"] == "bees")
    info = json.loads((out / bees["folder"] / "liftcore.json").read_text())
    assert info["document"]["sha256"] == bees["sha256"]
    assert info["report"]["recall"] == bees["recall"]
    assert info["config"]["objectives"] == ["segments", "qa"]  # its questions stand beside it
    geese = next(e for e in index(out) if e["title"] == "geese")
    info = json.loads((out / geese["folder"] / "liftcore.json").read_text())
    assert info["config"]["objectives"] == ["segments"]
    # Nothing is done twice, and the base model is not even loaded.
    for name in ("broken.pdf", "empty.txt"):
        (documents / name).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(pool, "here", None)
        again = made_of(documents, out, plan, progress=False)
    assert [len(x) for x in (again.made, again.skipped, again.failed)] == [0, 3, 0]
    assert len(index(out)) == 3 and not (out / "failed.jsonl").exists()
    copied(monkeypatch, saved_memory)
    # What changed is made anew, and takes the place of the other in the index.
    (documents / "bees.txt").write_text(TEXT + " A last sentence.\n")
    (documents / "goats.jsonl").write_text('{"question": "Who?", "answer": "Nobody"}\n')
    again = made_of(documents, out, plan, progress=False)
    assert sorted(e["title"] for e in again.made) == ["bees", "goats"]
    assert len(index(out)) == 3 and bees["folder"] not in {e["folder"] for e in index(out)}
    assert len({d.name for d in out.iterdir() if d.is_dir()}) == 5
    # Another folder's memories join those that are there.
    other = tmp_path / "other"
    other.mkdir()
    (other / "hens.txt").write_text(TEXT.replace("bees", "hens"))
    made_of(other, out, plan, progress=False)
    assert sorted(e["title"] for e in index(out)) == ["bees", "geese", "goats", "hens"]


def test_settings_title_and_list_decide_what_is_made(documents, plan, tmp_path, monkeypatch):
    listed = tmp_path / "list.jsonl"
    line = {"path": "corpus/bees.txt", "title": "Of bees", "questions": "corpus/goats.jsonl"}
    listed.write_text(json.dumps(line) + "\n\n" + json.dumps({"path": "corpus/gone.txt"}) + "\n")
    (file, title, questions), gone = entries_of(listed)
    assert file.samefile(documents / "bees.txt") and title == "Of bees"
    assert questions.samefile(documents / "goats.jsonl") and gone[1:] == (None, None)
    job = jobs.job_of(file, title, questions, plan.digest())
    assert job == jobs.job_of(file, title, questions, plan.digest())
    assert job.folder.startswith("of-bees-")
    changed = Plan(plan.model, CONFIG.replace(epochs=2), device="cpu", dtype="float32")
    elsewhere = Plan(plan.model, CONFIG, device="cuda", dtype="float32")
    assert elsewhere.digest() == plan.digest() != changed.digest()
    monkeypatch.chdir(Path(plan.model).parent)
    near = replace(plan, model=Path(plan.model).name)
    assert near.digest() == plan.digest(), "a folder is one, however it is named"
    for other in (
        jobs.job_of(file, "Bees", questions, plan.digest()),
        jobs.job_of(file, title, None, plan.digest()),
        jobs.job_of(file, title, questions, changed.digest()),
        jobs.job_of(documents / "goats.txt", title, questions, plan.digest()),
    ):
        assert other.folder[-jobs.HASH :] != job.folder[-jobs.HASH :]
    summary = made_of(listed, tmp_path / "out", plan, progress=False)
    assert [e["title"] for e in summary.made] == ["Of bees"]
    assert [f["error"] for f in summary.failed] == ["No such file or directory"]
    listed.write_text('{"title": "no path"}\n')
    with pytest.raises(LiftError, match=r"list.jsonl, line 1: no JSON object with a path"):
        entries_of(listed)
    listed.write_text("")
    with pytest.raises(LiftError, match="holds no documents"):
        made_of(listed, tmp_path / "out", plan)


def test_an_interrupted_run_goes_on(documents, plan, tmp_path, monkeypatch, saved_memory):
    copied(monkeypatch, saved_memory)
    out, real, done = tmp_path / "out", pool.Worker.make, []

    def make(self, job, tell):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(job.title)
        return real(self, job, tell)

    with monkeypatch.context() as patch:
        patch.setattr(pool.Worker, "make", make)
        with pytest.raises(KeyboardInterrupt):
            made_of(documents, out, plan, progress=False)
    before = {e["title"] for e in index(out)}
    assert before == {*done} - {"broken", "empty"} and len(before) < 3
    summary = made_of(documents, out, plan, progress=False)
    assert {e["title"] for e in summary.skipped} == before
    assert len(summary.made) + len(before) == 3 == len(index(out))


def weights(out):
    """What was learnt, by title."""
    files = {entry["title"]: out / entry["folder"] / WEIGHTS for entry in index(out)}
    each = {title: sorted(load_file(file).items()) for title, file in files.items()}
    return {title: torch.cat([t.flatten() for _, t in of]) for title, of in each.items()}


def test_together_is_one_after_the_other(documents, plan, tmp_path, monkeypatch):
    """Up to rounding, through an interrupt, with documents that fail."""
    plan = replace(plan, config=CONFIG.replace(epochs=3, eps=1e-2))
    made_of(documents, tmp_path / "alone", replace(plan, together=1), progress=False)
    right, out, steps = weights(tmp_path / "alone"), tmp_path / "out", []
    plan, real = replace(plan, together=2), TogetherRunner._take

    def take(self, step):
        real(self, step)
        steps.append([learner.document.title for learner in step.learners.values()])
        if len(steps) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TogetherRunner, "_take", take)
    with pytest.raises(KeyboardInterrupt):
        made_of(documents, out, plan, progress=False)
    assert len(list(out.glob("*/training_state.safetensors"))) == len(steps[-1])
    before = {entry["title"] for entry in index(out)}
    summary = made_of(documents, out, plan, progress=False)
    assert {entry["title"] for entry in summary.skipped} == before
    assert {f["title"] for f in failed(out)} == {"broken", "empty"}
    ours = weights(out)
    assert ours.keys() == right.keys() == {"bees", "goats", "geese"}
    for title in ours:
        assert (ours[title] - right[title]).norm() < 1e-4 * right[title].norm()
    # Two at once while there were others, and nothing was done twice.
    assert max(map(len, steps)) == 2
    for entry in index(out):
        info = json.loads((out / entry["folder"] / "liftcore.json").read_text())
        taken = sum(entry["title"] in titles for titles in steps)
        assert taken == info["training"]["steps"]
    assert not list(out.glob("*/training_state.safetensors"))


def test_what_breaks_a_batch_is_made_alone(documents, plan, tmp_path, monkeypatch):
    """An error that no document has brought about, as far as is known."""

    def broken(self, step):
        raise RuntimeError("an op that has no kernel")

    monkeypatch.setattr(TogetherRunner, "_take", broken)
    summary = made_of(documents, tmp_path / "out", replace(plan, together=2), progress=False)
    assert len(summary.made) == 3 and len(summary.failed) == 2
    fp8 = replace(plan, together=2, config=CONFIG.replace(base_dtype="fp8"))
    with pytest.raises(LiftError, match="not trained together over a base in fp8"):
        made_of(documents, tmp_path / "other", fp8, progress=False)


@needs("bm25s")
def test_memories_at_a_url_are_those_of_a_folder(documents, plan, tmp_path, monkeypatch):
    monkeypatch.setenv("LIFTCORE_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    for _ in range(2):
        summary = made_of(documents, f"file://{out}", plan, progress=False)
        assert len(summary.made) + len(summary.skipped) == 3 == len(index(out))
    assert len(summary.skipped) == 3 and len(failed(out)) == 2
    # Nothing stays behind where they were made, and they can be loaded.
    assert list((tmp_path / "cache/corpus").glob("*[0-9a-f]/*.safetensors")) == []
    assert (
        Memories(out)
        .memory(Memories(out).choose("Where do the goats of Ansel Borrow graze?")[0])
        .title
        == "goats"
    )
    store = Store("memory://memories")
    store.write("memories.json", '{"memories": []}')
    assert store.index() == [] and store.read("nothing") is None
    store.write("memories.json", '{"memories": [1]}')
    with pytest.raises(LiftError, match=r"memories.json in memory://memories is damaged"):
        store.index()
    with pytest.raises(LiftError, match="cannot open nothing-like-it://"):
        Store("nothing-like-it://there")


@pytest.fixture
def forked(monkeypatch):
    """Worker processes without an import of their own, and with one thread."""
    monkeypatch.setattr(pool.os, "cpu_count", lambda: 1)
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(pool, "START", "fork")
    return fork


def test_a_worker_that_is_killed_loses_no_document(documents, plan, tmp_path, forked, monkeypatch):
    out, real = tmp_path / "out", pool.Worker.given
    monkeypatch.setenv("LIFTCORE_SAVE_SECONDS", "0")
    lives = tmp_path / "lives"

    def deadly(self, job, *rest):
        """The goats' worker dies once; the geese's each time, at first with the bees' run."""
        if job.title == "geese" or (job.title == "goats" and not lives.exists()):
            if job.title == "goats":
                lives.touch()
            kill(os.getpid())
        return real(self, job, *rest)

    monkeypatch.setattr(pool.Worker, "given", deadly)
    summary = made_of(documents, out, plan, workers=1, progress=False)
    assert sorted(e["title"] for e in summary.made) == ["bees", "goats"]
    (geese,) = (f for f in failed(out) if f["title"] == "geese")
    assert geese["error"].startswith("its worker ended 3 times in the middle of it (exit -9)")
    assert len(failed(out)) == 3
    monkeypatch.setattr(pool.Worker, "given", real)
    summary = made_of(documents, out, plan, workers=2, progress=False)
    assert [len(x) for x in (summary.made, summary.skipped, summary.failed)] == [1, 2, 2]
    # A model that cannot be loaded ends all.
    nowhere = Plan(str(tmp_path / "no model"), CONFIG, device="cpu")
    with pytest.raises(LiftError, match="no model"):
        made_of(documents, tmp_path / "none", nowhere, workers=2, progress=False)
    assert not children(os.getpid())


@needs("bm25s")
def test_ask_takes_the_memory_that_matches_or_none(documents, plan, tiny_folder, tmp_path, capsys):
    out = tmp_path / "memories"
    words = "--segment-length 16 --epochs 1 --rank 4 --objective segments --dtype fp32 --json"
    code = main(
        ["corpus", str(documents), "--out", str(out), "--model", str(tiny_folder), *words.split()]
    )
    said, noted = capsys.readouterr()
    result = json.loads(said.splitlines()[-1])
    assert code == 1  # two failed
    assert (result["documents"], result["made"], len(result["failed"])) == (5, 3, 2)
    assert "3 made, 0 there already, 2 failed" in said and "failed: " in noted
    assert "documents: 5 of 5, 2 failed" in noted and "tokens/s" in noted
    ask = ["ask", str(out), "--max-new-tokens", "3", "--json"]
    assert main([*ask, GOATS, "Which planet is red?"]) == 0
    said, noted = capsys.readouterr()
    first, second = json.loads(said.splitlines()[-1])["answers"]
    assert first["memory"].startswith("goats-") and first["match"] > 0.8
    assert second["memory"] is None and "no document matches: the base model answers" in noted
    assert "from goats (match" in noted
    assert (
        main(
            [
                *ask,
                "--all",
                ALL,
            ]
        )
        == 0
    )
    answers = json.loads(capsys.readouterr().out.splitlines()[-1])["answers"]
    assert sorted(a["memory"].partition("-")[0] for a in answers) == ["bees", "geese", "goats"]
    assert main(["ask", str(out / first["memory"]), "--all", "Who?"]) == 2


@pytest.mark.parametrize("how", [{"together": 2}, {"together": 1, "workers": 1}])
def test_the_line_tells_of_the_first_documents_already(
    documents, plan, tmp_path, monkeypatch, forked, how
):
    shown = []
    monkeypatch.setattr(
        ProgressLine,
        "count",
        lambda self, what, done, of, more="": shown.append((done, more)),
    )
    monkeypatch.setattr(work, "OFTEN", 0.0)
    for name in ("broken.pdf", "empty.txt", "bees.jsonl", "goats.jsonl"):
        (documents / name).unlink()
    plan = replace(plan, config=CONFIG.replace(epochs=3), together=how["together"])
    made_of(documents, tmp_path / "out", plan, workers=how.get("workers"))
    early = [more for done, more in shown if not done and more]
    assert len(early) > 1 and all("tokens/s" in more and more.endswith(" left") for more in early)
    assert shown[-1][0] == 3 and shown[-1][1].endswith("0:00:00 left")
