"""A folder of memories that is asked, here or at a URL: what is fetched, and what is kept."""

import json
import shutil

import fsspec
import pytest
from bees import TEXT
from extras import needs

from liftcore.cli.main import main
from liftcore.corpus import memories as many
from liftcore.corpus.jobs import Job
from liftcore.corpus.memories import Choice, Memories, is_many
from liftcore.corpus.store import Store
from liftcore.corpus.work import known
from liftcore.errors import LiftError
from liftcore.questions.choice import Documents

TITLES = {"goats-0": "Goats of Ansel", "geese-1": "Geese of the abbey", "hens-2": "Hens of Marta"}
GOATS, ALL = "Where are the goats of Ansel?", "Do goats of Ansel meet geese of the abbey?"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def folder(saved_memory, tmp_path, monkeypatch):
    """Three memories and their index, each told from the others by its title alone."""
    monkeypatch.setenv("LIFTCORE_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "memories"
    for name, title in TITLES.items():
        shutil.copytree(saved_memory, out / name)
        info = json.loads((out / name / "liftcore.json").read_text())
        info["document"]["title"] = title
        (out / name / "liftcore.json").write_text(json.dumps(info))
    _index(out, TITLES)
    return out


def _index(out, names):
    store = Store(str(out))
    entries = [known(store, Job(f"{name}.txt", "", None, name, 1)) for name in names]
    store.write("memories.json", json.dumps({"memories": entries}))


@pytest.fixture(params=["file", "memory"])
def url(folder, request):
    if request.param == "file":
        yield folder.as_uri()
        return
    fs = fsspec.filesystem("memory")
    fs.put(str(folder), "/bucket/memories", recursive=True)
    yield "memory://bucket/memories"
    fs.rm("/bucket", recursive=True)


@pytest.fixture
def read(monkeypatch):
    """The names of the files that are read from stores."""
    names, real = [], Store._content

    def content(self, name):
        names.append(name)
        return real(self, name)

    monkeypatch.setattr(Store, "_content", content)
    return names


def asked(capsys, *words):
    code = main(["ask", *map(str, words), "--max-new-tokens", "3", "--json"])
    said, noted = capsys.readouterr()
    assert code == 0, noted
    return json.loads(said.splitlines()[-1])["answers"], said, noted


@needs("bm25s")
def test_a_url_is_asked_as_a_folder_is(folder, url, read, capsys):
    right, _, _ = asked(capsys, folder, GOATS, "Which planet is red?")
    read.clear()
    answers, _, noted = asked(capsys, url, GOATS, "Which planet is red?")
    assert answers == right and "from Goats of Ansel (match" in noted
    assert (answers[0]["memory"], answers[0]["title"]) == ("goats-0", "Goats of Ansel")
    # Of the memory that was taken everything, of the others their words.
    assert [name for name in read if name.endswith(WEIGHTS)] == [f"goats-0/{WEIGHTS}"]
    assert sum(name.endswith("document.txt") for name in read) == 4
    # Nothing is read twice but what may have changed.
    read.clear()
    again, _, _ = asked(capsys, url, GOATS)
    assert again == right[:1]
    assert set(read) == {"memories.json", "goats-0/liftcore.json"}
    # One memory by itself, for whatever takes a memory.
    assert main(["report", f"{url}/geese-1/"]) == 0
    assert "Geese of the abbey" in capsys.readouterr().out
    assert main(["ask", f"{url}/nobody", "Who?"]) == 1
    assert "nobody holds no memory: there is no liftcore.json" in capsys.readouterr().err


def test_what_is_another_memory_by_now_is_fetched_anew(folder, url, tmp_path, monkeypatch):
    first = Store(url).bring("goats-0")
    info = json.loads(Store(url).read("goats-0/liftcore.json"))
    info["document"]["title"] = "Goats of Borrow"
    Store(url).write("goats-0/liftcore.json", json.dumps(info))
    second = Store(url).bring("goats-0")
    assert first != second == Store(url).bring("goats-0")
    assert json.loads((second / "liftcore.json").read_text()) == info
    # A copy that was broken off is none.
    real = Store._content

    def broken(self, name):
        if name.endswith(WEIGHTS):
            raise LiftError("the line is dead")
        return real(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_content", broken)
        with pytest.raises(LiftError, match="the line is dead"):
            Store(url).bring("hens-2")
    assert sorted((tmp_path / "cache/memories").iterdir()) == sorted([first, second])
    assert (Store(url).bring("hens-2") / WEIGHTS).is_file()


def test_what_no_store_gives_is_one_line(tmp_path, monkeypatch, capsys):
    class Denied(Exception):
        """What a library of some cloud raises."""

    def denied(*args, **kwargs):
        raise Denied("no credentials\nwere found")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", denied)
    assert main(["ask", "memory://bucket/memories", "Who?"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("in memory://bucket/memories: no credentials were found")
    assert not is_many(tmp_path)


@needs("bm25s")
def test_each_answer_of_several_says_whose_it_is(folder, capsys):
    answers, said, noted = asked(capsys, folder, "--all", ALL)
    titles = [answer["title"] for answer in answers]
    assert sorted(titles) == ["Geese of the abbey", "Goats of Ansel"] and "from" not in noted
    lines = said.splitlines()
    assert [line for line in lines if line.startswith("[")] == [f"[{title}]" for title in titles]
    for answer in answers:
        assert f"[{answer['title']}]\n{answer['answer']}\n" in said
    answers, said, _ = asked(capsys, folder, "--all", "Which planet is red?")
    assert answers[0]["title"] is None and said.startswith("[no memory: the base model]\n")


@needs("bm25s")
def test_the_words_of_the_documents_are_kept_beside_the_index(folder, monkeypatch):
    built, real = [], Documents.__init__

    def init(self, texts):
        built.append(list(texts))
        real(self, texts)

    monkeypatch.setattr(Documents, "__init__", init)
    first = Memories(folder)
    assert built == [[f"{title}\n{TEXT}" for title in TITLES.values()]]
    second = Memories(folder)
    assert len(built) == 1
    for question in (GOATS, ALL, "Who keeps bees?", "Zebras", ""):
        assert second.documents.ranked(question) == first.documents.ranked(question)
        assert second.choose(question, 3) == first.choose(question, 3)
    assert isinstance(second.choose(GOATS)[0], Choice)
    # Another index, another version, and a file that is damaged or not ours: made anew.
    _index(folder, list(TITLES)[:2])
    assert len(Memories(folder).documents.ranked(GOATS)) == 2 and len(built) == 2
    monkeypatch.setattr(many, "VERSION", many.VERSION + 1)
    assert len(Memories(folder).documents.ranked(GOATS)) == 2 and len(built) == 3
    kept = (folder / "memories.bm25").read_bytes()
    middle = len(kept) // 2
    for damaged in (kept[:middle], kept[:middle] + bytes(64) + kept[middle + 64 :], b""):
        (folder / "memories.bm25").write_bytes(damaged)
        assert Memories(folder).documents.ranked(GOATS) == first.documents.ranked(GOATS)[:2]
    assert len(built) == 6
    # Where nothing can be written, it is made each time.
    (folder / "memories.bm25").unlink()
    (folder / "memories.bm25").mkdir()
    assert Memories(folder).choose(GOATS)[0].folder == "goats-0"
    assert sorted(p.name for p in folder.iterdir() if not p.is_dir()) == ["memories.json"]


@pytest.mark.parametrize("name", ["../elsewhere", "..", "a/b", "/etc", ""])
def test_an_index_names_no_folder_elsewhere(folder, name, capsys):
    """It may come from anybody."""
    entries = Store(str(folder)).index()
    entries[0]["folder"] = name
    (folder / "memories.json").write_text(json.dumps({"memories": entries}))
    for place in (folder, folder.as_uri()):
        assert main(["ask", str(place), "Who?"]) == 1
        assert "names a folder elsewhere" in capsys.readouterr().err
