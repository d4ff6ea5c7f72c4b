"""The measurement of tiles: what is launched, what wins, and what the package makes of the file."""

import json
from dataclasses import astuple
from functools import partial

import pytest
import torch

from bench import tune
from bench.kernels.main import Model
from liftcore.kernels import tiles, tiling
from liftcore.kernels.device import planned
from liftcore.kernels.tiles import Tile

TOY = Model(576, 192, 1536, 4096)
FAST, SLOW = Tile(64, 64, 32, 4, 3), Tile(128, 128, 64, 8, 4)


@pytest.fixture(autouse=True)
def fresh():
    """Nothing is read from before, nor kept."""
    fresh_tables()
    yield
    fresh_tables()


def fresh_tables():
    for cache in (tiles.measured, tiles._pick, tiles._pick_split):
        cache.cache_clear()


def note(looked, kind, arch, rows, cols):
    looked.append((kind, rows, cols))


def test_every_problem_is_launched_with_the_tile_that_is_tried(monkeypatch):
    """On tensors that hold nothing, as on an H100."""
    marker = Tile(64, 64, 64, 4, 4, group=5)
    planned.append(90)
    try:
        for problem in tune.problems(TOY, 512, torch.device("meta")):
            call = problem.start()
            for tile in (None, marker):
                launches = []
                with tiling.recording(launches.append):
                    if tile is None:
                        call()
                    else:
                        with tiles.trying(problem.kind, tile):
                            call()
                groups = {launch.constexprs.get("GROUP") for launch in launches}
                assert (5 in groups) == (tile is marker), problem.key
            looked = []
            with monkeypatch.context() as patch:
                patch.setattr(tiles, "_fitting", partial(note, looked))
                fresh_tables()
                with tiling.recording(launches.append):
                    call()
            assert problem.key in looked, "an entry of the file is looked for under its key"
    finally:
        planned.pop()


def test_candidates_begin_with_the_tables_and_fit_the_card():
    for kind in ("forward", "dx", "gate_up", "down", "outer", "logits", "capped", "head_dx"):
        made = tune.candidates(kind, 90)
        table = {t for k, a, t in (*tiles.BF16_TILES, *tiles.BF16_SPLIT_TILES, *tiles.HEAD_TILES)
                 if k == kind and a <= 90}  # fmt: skip
        assert {*made[: len(table)]} == table and len(made) == len({*made}) > 20
        pair = 2 if kind == "gate_up" else 1
        for tile in made[len(table) :]:
            assert 2 * tile.stages * tile.bk * (tile.bm + pair * tile.bn) <= 232_448
            assert pair * tile.bm * tile.bn <= 128 * 32 * tile.warps


class StubTimer:
    """Says that FAST is twice as fast as the tables, and every other tile slower."""

    def __init__(self, *args):
        self.compared = []

    def compare(self, variants):
        self.compared.append([*variants])
        return {name: {"tables": 2.0, str(FAST): 1.0}.get(name, 3.0) for name in variants}, {}


@pytest.fixture
def card(monkeypatch, tmp_path):
    """A card whose launches are numbers: wrong with SLOW, an error with the last candidate."""
    monkeypatch.setattr(tune, "architecture", lambda device: 90)
    monkeypatch.setattr(tune, "processors", lambda device: 132)
    monkeypatch.setattr(tune, "results_name", lambda device: "test-card")
    monkeypatch.setattr(tune, "device_name", lambda device: "Test Card")
    monkeypatch.setattr(tune, "Timer", StubTimer)
    bad = Tile(256, 256, 128, 4, 5)
    monkeypatch.setattr(tune, "candidates", lambda kind, arch: [SLOW, FAST, bad])
    started = []

    def problems(model, tokens, device):
        def start(key):
            started.append(key)

            def call():
                tile = tiles._tried.get(key[0])
                if tile == bad:
                    raise RuntimeError("out of resource: shared memory")
                return torch.ones(3) * (2 if tile == SLOW else 1)

            return call

        keys = [("forward", tokens, 4096), ("head_dx", 0, 0)]
        return [tune.Problem(*key, lambda key=key: start(key)) for key in keys]

    monkeypatch.setattr(tune, "problems", problems)
    monkeypatch.setattr(tune, "ways", lambda *_: [])

    def run(*options):
        started.clear()
        code = tune.main(["--device", "cuda", "--out", str(tmp_path), *options])
        return code, [*started], tmp_path / "tiles.test-card.json"

    return run


def test_the_fastest_right_tile_of_each_shape_is_written_and_taken(card, monkeypatch, capsys):
    code, started, file = card("--tokens", "8192", "2048")
    assert code == 0 and len(started) == 3
    made = json.loads(file.read_text())
    assert made["architecture"] == 90 and made["device"] == "Test Card" and made["versions"]
    assert [(e["kind"], e["rows"], e["cols"]) for e in made["tiles"]] == started
    assert all(e["tile"] == [*astuple(FAST)] and e["tried"] == 1 for e in made["tiles"])
    assert (
        made["tiles"][0]["milliseconds"] == 1000 and "3 tiles are faster" in capsys.readouterr().out
    )
    usual = tiles.pick("forward", 90, 2, 8192, 4096, 132)
    assert usual != FAST
    monkeypatch.setenv("LIFTCORE_TILES", str(file))
    fresh_tables()
    for rows in (1024, 2048, 3000, 8192, 16384):
        assert tiles.pick("forward", 90, 2, rows, 4096, 132) == FAST, "at most twice or half"
    assert tiles.head_tiles(90, 2, True, False) == (tiles.HEAD_TILES[1][2], FAST)
    # Other columns, rows far off, another dtype, architecture, or rows that start anywhere.
    for given in ((2, 8192, 4095), (2, 16400, 4096), (2, 500, 4096), (4, 8192, 4096)):
        assert tiles.pick("forward", 90, *given, 132) != FAST
    assert tiles.pick("forward", 80, 2, 8192, 4096, 132) != FAST
    assert tiles.pick("forward", 90, 2, 8192, 4096, 132, False) == tiles.UNALIGNED_TILE


def test_a_run_goes_on_and_names_what_it_had_no_time_for(card, capsys):
    code, started, file = card("--minutes", "-1")
    assert code == 0 and not started and "forward 8192 4096" in capsys.readouterr().out
    assert len(card("--tokens", "8192")[1]) == 2
    before = file.read_text()
    _, started, _ = card("--tokens", "8192", "2048")
    assert started == [("forward", 2048, 4096)]
    made = json.loads(file.read_text())["tiles"]
    assert made[:2] == json.loads(before)["tiles"] and len(made) == 3
    assert len(card("--tokens", "8192", "--fresh")[1]) == 2


def test_a_tile_that_gains_nothing_gets_no_entry(card, monkeypatch):
    monkeypatch.setattr(StubTimer, "compare", lambda self, v: (dict.fromkeys(v, 1.0), {}))
    _, started, file = card("--tokens", "8192")
    assert started and json.loads(file.read_text())["tiles"] == []


@pytest.mark.parametrize("text", ["", "{}", '{"architecture": 90, "tiles": [{"kind": "dx"}]}'])
def test_a_file_that_holds_no_tiles_is_refused_in_a_line(monkeypatch, tmp_path, text):
    file = tmp_path / "tiles.json"
    file.write_text(text)
    for named in (file, tmp_path / "absent.json"):
        monkeypatch.setenv("LIFTCORE_TILES", str(named))
        fresh_tables()
        with pytest.raises(ValueError, match=r"\.json is no file of tiles"):
            tiles.pick("forward", 90, 2, 8192, 4096, 132)


def test_without_a_gpu_nothing_is_tuned(capsys):
    assert (
        tune.main(["--device", "cpu"]) == 1 and "this machine has none" in capsys.readouterr().out
    )
