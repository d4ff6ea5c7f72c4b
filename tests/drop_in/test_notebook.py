"""The notebook under examples/ runs from top to bottom, and is kept without its outputs."""

import json

from wheels import ROOT

import liftcore

NOTEBOOK = json.loads((ROOT / "examples/first_memory.ipynb").read_text("utf-8"))


def test_it_runs_from_top_to_bottom(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = liftcore.LiftConfig(segment_length=64, epochs=1, rank=4)
    names = {"__name__": "__main__"}
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] != "code":
            continue
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert names["MODEL"] == "smollm2-135m" and names["CONFIG"] is None
            names |= {"MODEL": str(tiny_folder), "CONFIG": config}
    said = capsys.readouterr().out
    assert "recall" in said and "Who founded the Lantern Works? - " in said
    assert (tmp_path / "lantern-memory/adapter_model.safetensors").is_file()
    assert "The Lantern Works" in (tmp_path / "lantern.html").read_text("utf-8")


def test_it_is_a_notebook_without_outputs():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    for cell in NOTEBOOK["cells"]:
        assert cell["cell_type"] in ("code", "markdown") and not cell.get("outputs")
