"""The step benchmark at toy sizes: the floor, the split, the shapes, and no wrong speed-up."""

import csv
import weakref

import pytest
import torch
from tiny import tiny_model

from bench import common, shapes
from bench.step import case as step_case
from bench.step import main as step
from bench.step import measure as step_measure
from bench.step import stages
from bench.step import variants as step_variants

pytest.importorskip("peft")
pytest.importorskip("accelerate")


SMALL = ("--segment-length", "16", "--rank", "4")


def without_trainer(argv):
    return step.run("step", "", argv, ["plain", "liftcore"], "liftcore")


@pytest.fixture
def toy(monkeypatch, tmp_path):
    monkeypatch.setattr(shapes, "build", lambda *args: (tiny_model(), None))
    monkeypatch.setattr(step, "memory_of", lambda *args: 2**30)
    monkeypatch.setitem(step_measure.PRODUCTS, "cpu", 64)
    common = ["--device", "cpu", "--tokens", "32", *SMALL, "--steps", "2", "--rounds", "2"]

    def run(*options, main=without_trainer, name="step"):
        code = main([*common, *options, "--out", str(tmp_path)])
        with (tmp_path / f"{name}.csv").open() as file:
            return code, list(csv.DictReader(file))

    return run


def test_the_floor_counts_what_a_step_needs():
    linear = 2 * (48 * 48 * 2 + 24 * 48 * 2 + 3 * 48 * 80)
    lora = 2 * 4 * ((48 + 48) * 2 + (24 + 48) * 2 + 3 * (48 + 80))
    # A layer's four heads: two products of 2·S·D forward, five backward, half of it causal.
    attention = 2 * 4 * (2 + 5) * 2 * 16 * 12 / 2
    flops = step_case.step_flops(tiny_model(), 16, 4, tokens=32, scored=20)
    by_hand = 32 * (4 * linear + 6 * lora + attention) + 20 * 4 * 211 * 48
    assert flops == pytest.approx(by_hand, rel=1e-12)


def test_the_peak_is_the_rate_of_a_product(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(step_measure.time, "perf_counter", lambda: next(clock))
    assert step_measure.peak_rate(torch.device("cpu"), torch.float32, 8) == 2 * 8**3


@pytest.mark.parametrize(
    ("name", "parameters", "depth"),
    [
        ("llama-3-8b", 8_030_261_248, 32),
        ("qwen3-8b", 8_190_735_360, 36),
        ("smollm2-135m", 134_515_008, 30),
    ],
)
def test_shapes_have_the_published_sizes(name, parameters, depth):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shapes.config(name))
        one = AutoModelForCausalLM.from_config(shapes.config(name, 1))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.get_decoder().layers) == depth and len(one.get_decoder().layers) == 1
    assert shapes.config(name).num_hidden_layers == depth


def test_twins_share_weights_and_nothing_else():
    model = tiny_model()
    other = shapes.twin(model)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert a.data_ptr() == b.data_ptr()
    other.get_decoder().layers[0].mlp.up_proj = torch.nn.Identity()
    assert isinstance(model.get_decoder().layers[0].mlp.up_proj, torch.nn.Linear)


def test_rows_and_table(toy, capsys):
    code, rows = toy("--fast", main=step.main)
    assert code == 0 and len(rows) == 4 and rows[-1]["variant"] == "liftcore"
    for r in rows:
        parts = sum(float(r[f"{s}_ms"]) for s in (*stages.NAMES, "host"))
        assert all(float(r[f"{s}_ms"]) > 0 for s in stages.NAMES)
        # Two rounds: their median is their mean, and the stages are parts of it.
        assert parts == pytest.approx(float(r["step_ms"]), abs=0.06)
        share = float(r["floor_ms"]) / float(r["step_ms"])
        assert share == pytest.approx(float(r["floor_share"]), rel=0.2, abs=0.01)
        assert r["agrees"] == "True" and r["layers"] == "2" and r["scored"] == "30.0"
        assert r["peak_gib"] == "1.0" and "transformers=" in r["versions"]
        assert bool(r["liftcore_speedup"]) == (r["variant"] != "liftcore")
    out = capsys.readouterr().out
    assert " x" in out and "the losses differ" not in out


@pytest.mark.parametrize("when", ["first", "later"])
def test_no_speed_up_where_losses_differ(toy, monkeypatch, capsys, when):
    real = step_variants.Liftcore

    class Wrong(real):
        def epoch(self, number):
            off = when == "first" or number > 1
            return [x * (1.03 if off else 1.0) for x in super().epoch(number)]

    monkeypatch.setitem(step_variants.VARIANTS, "liftcore", Wrong)
    code, rows = toy()
    assert code == 1 and not any(r["liftcore_speedup"] for r in rows)
    assert {r["agrees"] for r in rows if r["variant"] != "liftcore"} == {"False"}
    out = capsys.readouterr().out
    assert "no speed-up is claimed" in out and " x" not in out


def test_dropin_compares_trainer_with_itself(toy, capsys):
    code, rows = toy(main=step.dropin, name="dropin")
    assert code == 0 and [r["variant"] for r in rows] == [
        "PEFT defaults + Trainer",
        "PEFT defaults + Trainer, accelerated",
    ]
    assert float(rows[0]["loss_difference"]) < 1e-4 and float(rows[1]["loss_difference"]) == 0
    assert rows[0]["liftcore_speedup"] and not rows[1]["liftcore_speedup"]
    assert "replaced" in rows[1]["note"] and "replaced" in capsys.readouterr().out


def test_dropin_sees_a_loss_that_accelerate_changed(toy, monkeypatch):
    real = step_variants.liftcore.accelerate

    def wrong(model):
        report = real(model)
        for module in model.modules():
            if hasattr(module, "lora_A"):
                module.scaling["default"] *= -30
        return report

    monkeypatch.setattr(step_variants.liftcore, "accelerate", wrong)
    code, rows = toy("--steps", "6", main=step.dropin, name="dropin")
    assert code == 1 and not any(r["liftcore_speedup"] for r in rows)


def test_a_loss_that_is_no_number_agrees_with_nothing(toy, monkeypatch):
    real = step_variants.Liftcore

    class Broken(real):
        def epoch(self, number):
            return [float("nan") for _ in super().epoch(number)]

    monkeypatch.setitem(step_variants.VARIANTS, "liftcore", Broken)
    assert toy()[0] == 1


def test_what_cannot_run_is_named(toy, monkeypatch, capsys):
    class NoRoom:
        def __init__(self, *args):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(step_variants.VARIANTS, "plain", NoRoom)
    code, rows = toy()
    lost = rows[0]
    assert code == 0 and lost["note"] == "not run: out of memory" and not lost["step_ms"]
    assert rows[1]["step_ms"] and rows[1]["agrees"] == "True"
    assert "PEFT bf16 + plain loop: not run: out of memory" in capsys.readouterr().out


@pytest.mark.parametrize("when", [0, 1])  # as it begins, or in its timed rounds
def test_what_has_no_room_beside_the_others_is_timed_alone(toy, monkeypatch, when):
    here = weakref.WeakSet()

    class Large(step_variants.Plain):
        def epoch(self, number):
            if number >= when and list(here):
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return super().epoch(number)

    class Small(step_variants.Liftcore):
        def __init__(self, *args):
            super().__init__(*args)
            here.add(self)

    monkeypatch.setitem(step_variants.VARIANTS, "plain", Large)
    monkeypatch.setitem(step_variants.VARIANTS, "liftcore", Small)
    names = ["liftcore", "plain"]
    _, rows = toy(main=lambda argv: step.run("step", "", argv, names, "liftcore"))
    alone = next(r for r in rows if r["variant"] != "liftcore")
    assert alone["step_ms"] and alone["agrees"] == "True" and "timed alone" in alone["note"]


def test_a_model_that_does_not_fit_ends_nothing(toy, monkeypatch):
    def build(name, *args):
        if name == "big":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return tiny_model(), None

    monkeypatch.setattr(shapes, "build", build)
    code, rows = toy("--model", "big", "small")
    assert code == 1 and rows[0]["note"] == "not run: out of memory" and rows[0]["model"] == "big"
    assert len(rows) == 3 and rows[-1]["model"] == "small" and rows[-1]["step_ms"]


def test_when_the_time_is_up_the_rest_is_named(toy):
    code, rows = toy("--minutes", "1e-9", "--append")
    assert code == 0 and [r["note"] for r in rows] == ["not run: the time was up"]
    _, rows = toy("--append")
    assert len(rows) == 3 and rows[-1]["variant"] == "liftcore"
    assert len(toy("--minutes", "1e-9")[1]) == 1


def test_a_run_that_goes_on_measures_only_what_is_missing(toy):
    toy("--minutes", "1e-9", "--resume")
    _, rows = toy("--resume")
    assert len(rows) == 3, "what had no time is measured"
    # One step of another size is new; the first one is there.
    _, more = toy("--resume", "--tokens", "32", "64")
    assert more[:3] == rows and [r["tokens"] for r in more[3:]] == ["64", "64"]


def test_a_round_is_enough_when_the_deadline_has_passed():
    args, _ = step.options(["--device", "cpu", "--steps", "1", *SMALL])
    case = step_case.Case(tiny_model(), None, 16, args)
    outcomes = step_measure.measure(case, ["plain", "liftcore"], 5, deadline=0.0)
    assert [len(o.seconds) for o in outcomes.values()] == [1, 1]
    assert not step_measure.disagreement(outcomes)


@pytest.mark.parametrize("on_device", [False, True])
def test_all_variants_take_the_same_steps(monkeypatch, on_device):
    """In fp32 the losses of two epochs are those of liftcore, with either kind of its steps."""
    if on_device:
        from liftcore.training.graph import GraphRunner

        monkeypatch.setattr(step_variants, "make_runner", GraphRunner)
    args, _ = step.options(["--device", "cpu", "--steps", "3", *SMALL])
    case = step_case.Case(tiny_model(), None, 32, args)
    names = ["liftcore"] if on_device else list(step_variants.VARIANTS)
    built = {name: step_variants.build(name, case) for name in {*names, "plain", "liftcore"}}
    built["liftcore"].stages.on = True
    losses = {name: [v.epoch(0), v.epoch(1)] for name, v in built.items()}
    for name, others in losses.items():
        for ours, theirs in zip(losses["liftcore"], others, strict=True):
            assert ours == pytest.approx(theirs, rel=2e-5), name
    assert all(seconds > 0 for seconds in built["liftcore"].stages.take().values())


def test_all_variants_start_from_one_adapter_and_the_labels_of_transformers():
    args, _ = step.options(["--device", "cpu", "--steps", "1", *SMALL])
    case = step_case.Case(tiny_model(), None, 32, args)
    ours, peft = step_variants.build("liftcore", case), step_variants.build("official", case)
    for path, lora_a in case.start.items():
        layer = peft.model.base_model.model.get_submodule(path)
        assert torch.equal(layer.lora_A["default"].weight, lora_a)
        assert torch.equal(ours.adapter.layers[path].lora_a, lora_a)
    batch = case.batches(0)[0]
    ids, labels = batch["input_ids"], batch["labels"]
    assert torch.equal(labels[:, 1:], ids[:, 1:]) and (labels[:, 0] == -100).all()


def test_functions_that_a_peer_replaces_come_back():
    import transformers.models.llama.modeling_llama as module

    before = module.apply_rotary_pos_emb
    with step_variants._own_names(tiny_model()):
        module.apply_rotary_pos_emb = None
    assert module.apply_rotary_pos_emb is before


def test_stages_on_a_gpu_are_events_behind_a_pause(monkeypatch):
    """No GPU is needed: events count up, and the time before a step's
    forward belongs to no stage."""
    now = iter(range(100))
    calls = []

    class Event:
        def __init__(self, enable_timing):
            self.at = None

        def record(self):
            self.at = next(now)

        def elapsed_time(self, end):
            return 1000.0 * (end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", calls.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("wait"))
    s = stages.Stages(torch.device("cuda"))
    s.on, s.pause = True, 9.0
    for _ in range(2):
        for _ in range(2):  # a step of two passes
            s._before_body()
            s.mark("forward")
            s.mark("head")
        s.mark("backward")
        s.mark("optimizer")
    assert s.take() == {"forward": 4.0, "head": 4.0, "backward": 4.0, "optimizer": 2.0}
    assert calls == [stages.CYCLES, stages.CYCLES, "wait"] and not any(s.take().values())


def test_rows_are_not_added_to_a_file_of_other_columns(tmp_path):
    device = torch.device("cpu")
    common.Rows(tmp_path / "a.csv", device, ["x"]).add(x=1)
    common.Rows(tmp_path / "a.csv", device, ["y"], append=True).add(y=2)
    with (tmp_path / "a.csv").open() as file:
        assert [r["y"] for r in csv.DictReader(file)] == ["2"]


@pytest.mark.parametrize("main, name", [(step.main, "step"), (step.dropin, "dropin")])
def test_rows_lie_with_the_other_results_of_their_device(main, name, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "RESULTS", tmp_path)
    assert main(["--device", "cpu", "--minutes", "1e-9"]) == 0
    folder = tmp_path / common.results_name(torch.device("cpu"))
    assert [p.name for p in folder.glob("*")] == [f"{name}.csv"]
