"""--config and --save-config, --log and --report-to, and the completion of a shell."""

import json
import os
import subprocess
import sys
import types

import pytest
import yaml

from liftcore import lift
from liftcore.cli import options, runfile
from liftcore.cli.main import _parse, main
from liftcore.config import LiftConfig
from liftcore.errors import LiftError
from liftcore.info import read_info
from liftcore.training.log import Progress
from liftcore.training.metrics import metrics

TEXT = "Ordo Vance sailed the Meriden to Port Astle in the spring of 1871. " * 6
FAST = {"segment_length": 24, "epochs": 2, "rank": 4}
NOTHING: dict = {"name": "", "settings": {}}


@pytest.fixture
def run_file(tmp_path):
    """Writes a run's YAML, and gives its name."""

    def write(text):
        file = tmp_path / "run.yaml"
        file.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
        return str(file)

    return write


@pytest.fixture
def absorb(tiny_folder, tmp_path, capsys):
    """Runs `liftcore absorb` on the tiny model: (exit code, out folder, stdout, stderr)."""

    def run(*words, name="memory"):
        file, out = tmp_path / "voyage.txt", tmp_path / name
        file.write_text(TEXT)
        tiny = ["--model", str(tiny_folder), "--device", "cpu", "--dtype", "fp32"]
        tiny += ["--preset", "plain"]
        code = main(["absorb", str(file), "--out", str(out), *tiny, *map(str, words)])
        return code, out, *capsys.readouterr()

    return run


def parsed(file, *words):
    return _parse(["absorb", "x.txt", "--config", file, *words])


def test_a_file_is_the_same_as_its_flags(run_file):
    file = run_file(
        """# a run
        preset: understand
        learning-rate: 1e-3
        layers: [-3, -1]
        objective: [segments, qa]
        mix: [1, 2.5]
        train_a: true
        qa_first: no
        qa_kinds: quiz
        keep: null
        title: 1984
        qa-concurrency: 8
        merge: true
        without_document: false
        """
    )
    args = parsed(file)
    flags = (
        "--preset understand --learning-rate 1e-3 --layers=-3,-1 --objective segments,qa "
        "--mix 1,2.5 --train-a --no-qa-first --qa-kinds quiz --title 1984 --qa-concurrency 8 "
        "--merge"
    )
    same = _parse(["absorb", "x.txt", *flags.split()])
    assert {**vars(args), "config": None} == vars(same)
    assert options.config(args).learning_rate == 1e-3


def test_what_a_preset_would_change_is_saved(tmp_path):
    saved = str(tmp_path / "saved.yaml")
    plain = LiftConfig()
    runfile.save(saved, _parse(["absorb", "x.txt"]), plain, "memorize")
    again = options.config(parsed(saved))
    assert again == plain.replace(layers=1.0, epochs=plain.epochs)


def test_flags_win_wherever_they_stand(run_file):
    file = run_file({"epochs": 7, "rank": 16, "merge": True, "qa_first": True})
    args = parsed(file, "--epochs", "3", "--no-qa-first")
    assert (args.epochs, args.rank, args.merge, args.qa_first) == (3, 16, True, False)
    assert _parse(["absorb", "--epochs=3", "x.txt", f"--config={file}"]).epochs == 3
    assert _parse(["estimate", "100", "--config", file, "--rank", "2"]).rank == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("epoch: 3", "unknown key 'epoch' (did you mean epochs?)"),
        ("leraning_rate: 3", "did you mean learning_rate?"),
        ("foo: 3\nepochs: many\nrnk: 4\n7: 1",
         "unknown keys 'foo', 'rnk' (did you mean rank?), '7'\n"),
        ("file: other.txt", "unknown key 'file'"),
        ("rank: many", "rank: invalid literal"),
        ("rank: [1, 2]", "rank: "),
        ("rank: true", "rank is not what"),
        ("title: {a: 1}", "title is not what"),
        ("title: [a, b]", "title takes one value"),
        ("merge: 1", "merge must be true or false"),
        ("dtype: fp8", "dtype: 'fp8' is none of bf16, fp16, fp32"),
        ("schedule: x", "schedule: 'x' is none of"),
        ("- a\n- b", "not a list of keys"),
        ("a: [1", "line 1: not YAML"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_one_line(run_file, capsys, text, told):
    file = run_file(text)
    assert main(["absorb", "x.txt", "--config", file]) == 2
    err = capsys.readouterr().err
    assert told in err and file in err and len(err.splitlines()) == 1


def test_a_file_that_is_not_there(tmp_path, capsys):
    missing = str(tmp_path / "no.yaml")
    assert main(["absorb", "x.txt", "--config", missing]) == 1
    assert missing in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["absorb", "x.txt", "--config"])
    assert "expected one argument" in capsys.readouterr().err


def test_the_effective_settings_are_saved_and_make_the_same_run(
    absorb, run_file, tiny_folder, tmp_path, monkeypatch
):
    saved, taken = tmp_path / "effective.yaml", []

    def stop(*args, config, **options):
        taken.append(config)
        raise LiftError("far enough")

    monkeypatch.setattr(lift, "absorb", stop)
    code, _, _, err = absorb(
        *("--config", run_file({**FAST, "rank": 8, "without_document": True, "title": "Sea"})),
        *("--rank", 4, "--layers=-1,-1", "--save-config", saved),
    )
    assert code == 1 and "far enough" in err
    values = yaml.safe_load(saved.read_text())
    assert values["rank"] == 4 and values["without_document"] is True and values["title"] == "Sea"
    assert values["preset"] == "plain" and values["layers"] == [-1, -1]
    assert not values.keys() & {"out", "file", "config", "json"}
    args = parsed(str(saved))
    assert [options.config(args)] == taken and taken[0].segment_length == 24
    assert args.model == str(tiny_folder) and args.without_document and not args.merge


class Tracker(types.ModuleType):
    """Stands for trackio and for wandb: both have init, log and finish."""

    def __init__(self, name, breaks=False):
        super().__init__(name)
        self.breaks, self.begun, self.logged, self.ended = breaks, None, [], False

    def init(self, **about):
        self.begun = about
        return self

    def log(self, values, step):
        if self.breaks:
            raise OSError("the line is dead")
        self.logged.append((step, values))

    def finish(self):
        self.ended = True


def test_each_step_is_logged_and_reported(absorb, run_file, tmp_path, monkeypatch):
    tracker, log = Tracker("trackio"), tmp_path / "metrics.jsonl"
    monkeypatch.setitem(sys.modules, "trackio", tracker)
    file = run_file({**FAST, "report_to": "trackio"})
    code, out, _, err = absorb("--config", file, "--log", log)
    assert code == 0, err
    start, *steps, end = map(json.loads, log.read_text().splitlines())
    info = read_info(out)
    assert LiftConfig(**{k: start[k] for k in vars(info.config)}) == info.config
    assert [step["step"] for step in steps] == [*range(1, info.training.steps + 1)]
    assert steps[0]["epoch"] == 1 and steps[-1]["epoch"] == 2
    assert [round(step["loss"], 4) for step in steps] == info.training.curve
    assert steps[-1]["learning_rate"] < max(step["learning_rate"] for step in steps)
    assert end["recall"] == info.report.recall and end["event"] == "end"
    assert (tracker.begun["project"], tracker.begun["name"]) == ("liftcore", "voyage")
    assert tracker.begun["config"]["epochs"] == 2 and tracker.ended
    assert [(at, values.get("loss")) for at, values in tracker.logged] == [
        *((step["step"], step["loss"]) for step in steps),
        (steps[-1]["step"], None),
    ]
    assert tracker.logged[-1][1]["recall"] == info.report.recall


def test_a_log_grows_and_says_when_it_cannot(tmp_path):
    for name in ("one", "two"):
        with metrics(tmp_path / "log", None, name=name, settings={}) as told:
            told.end(recall=None)
    lines = (tmp_path / "log").read_text().splitlines()
    assert [json.loads(line).get("name") for line in lines] == ["one", None, "two", None]
    with pytest.raises(LiftError, match="cannot write"), metrics(tmp_path, None, **NOTHING):
        pass


def test_a_tracker_that_breaks_ends_no_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Tracker("wandb", breaks=True))
    with (
        pytest.warns(UserWarning, match="wandb gets no more of this run: the line is dead"),
        metrics(tmp_path / "log", "wandb", **NOTHING) as told,
    ):
        for step in (1, 2):
            told.step(Progress(0, step, 2, 10, 0.1, 1.0, 0.5))
    assert len((tmp_path / "log").read_text().splitlines()) == 3


@pytest.mark.parametrize("name", ["trackio", "wandb", "tensorboard"])
def test_a_tracker_that_is_missing_is_named(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with (
        pytest.raises(LiftError, match=rf"pip install {name}, .*\[trackers\]"),
        metrics(None, name, **NOTHING),
    ):
        pass


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("liftcore abs", {"absorb"}),
        ("liftcore absorb --segm", {"--segment-length", "--segment-epochs"}),
        ("liftcore absorb x.txt --preset und", {"understand"}),
    ],
)
def test_a_shell_completes(tmp_path, line, wanted):
    pytest.importorskip("argcomplete")
    said = tmp_path / "said"
    env = {
        **os.environ,
        **dict(_ARGCOMPLETE="1", _ARGCOMPLETE_SHELL="bash", _ARGCOMPLETE_IFS="\n"),
        **dict(COMP_LINE=line, COMP_POINT=str(len(line)), _ARGCOMPLETE_STDOUT_FILENAME=str(said)),
    }
    code = "from liftcore.cli.main import main; main([])"
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=60)
    assert {word.strip() for word in said.read_text().split("\n")} == wanted
