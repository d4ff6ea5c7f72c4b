"""The README, docs/ and the module docstrings say what is there."""

import ast
import csv
import json
import re
from pkgutil import resolve_name

import pytest
from wheels import ROOT

from liftcore.cli.main import _parser

README = (ROOT / "README.md").read_text()
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
MODULES = [
    file
    for folder in ("bench", "kernels", "liftcore")
    for file in sorted((ROOT / folder).rglob("*.py"))
]
RESULTS = ROOT / "bench/results/cpu-epyc"


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_module_says_what_it_is(file):
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    first = text.split("\n\n")[0]
    assert re.search(r"[.:?!]$|^python -m ", first) and text[0].isalpha()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere_and_code_is_python(page):
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        # The site has these beside the pages of docs/.
        assert (page.parent / target).exists(), target
    for code in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
        ast.parse(code)


def test_the_api_pages_name_what_is_there():
    for page in (ROOT / "docs/api").glob("*.md"):
        text = page.read_text()
        for name, members in re.findall(
            r"^::: (\S+)\n(?:    .*\n      members: \[(.*)\])?", text, re.M
        ):
            documented = resolve_name(name)
            for member in filter(None, members.split(", ")):
                assert getattr(documented, member).__doc__, f"{name}.{member}"


def test_the_readme_is_short_and_says_where_things_are():
    assert len(README.splitlines()) <= 200
    table = README.split("## Where things are")[1].split("```")[0]
    places = re.findall(r"`(\w+)` in `([\w/.]+)`", table)
    assert len(places) > 10
    for name, path in places:
        assert re.search(rf"^(def|class) {name}\b|^{name} = ", (ROOT / path).read_text(), re.M), (
            path
        )


def test_the_tree_of_the_readme_has_every_folder():
    tree = README.split("## Where things are")[1].split("```")[1]
    for folder in ("liftcore", "."):
        for child in (ROOT / folder).iterdir():
            if (child / "__init__.py").exists() and child.is_dir():
                assert re.search(rf"^ *{child.name}/ ", tree, re.M), child


def test_the_readme_has_every_command():
    named = set(re.findall(r"^\| `liftcore (\w+)", README, re.M))
    (verbs,) = (action for action in _parser()._actions if action.choices)
    assert named == set(verbs.choices)


def test_the_figures_of_the_readme_are_those_of_the_files():
    figures = README.split("Measured on")[1].split("Not measured")[0]
    settings = json.loads((RESULTS / "recall.json").read_text())["settings"]
    of = {setting["setting"]: setting for setting in settings}
    now, before = of["memorize"], of["cosine 12 epochs, batch 2, rank 64"]
    assert now["runs"] == now["reached"] and f"after {now['passes_last']:.0f} passes" in figures
    lines = (RESULTS / "recall.jsonl").read_text().splitlines()
    runs = [row for row in map(json.loads, lines) if row["setting"] == "memorize"]
    assert len(runs) == now["runs"] == 18
    worst = min(row["curve"][-1]["recall"] for row in runs)
    recall = f"{now['recall_last']:.0%}, in the worst run {worst:.0%}; {now['text_loss']:.2f} nats"
    assert recall.replace("%", " %") in figures
    old = f"{before['recall_last']:.0%} after {before['passes_last']:.0f} passes"
    assert f"{old}; {before['text_loss']:.1f} nats".replace("%", " %") in figures

    def speed(row):
        return round(float(row["tokens_per_second"]))

    trainer, loop, ours, *larger = csv.DictReader((RESULTS / "step.csv").open())
    times = [f"{float(row['liftcore_speedup']):.2f} times" for row in (trainer, loop)]
    assert f"{speed(ours)} tokens/s: {times[0]} PEFT's defaults" in figures
    assert f"{times[1]} PEFT in bf16" in figures and trainer["command"] in figures
    others = sorted(float(row["liftcore_speedup"]) for row in larger if row["liftcore_speedup"])
    assert f"a step is {others[0]:.2f} to {others[-1]:.2f} times" in figures
    plain, fast = csv.DictReader((RESULTS / "dropin.csv").open())
    assert f"{speed(fast)} tokens/s, without it {speed(plain)}: " in figures
    assert f"{float(plain['liftcore_speedup']):.2f} times |" in figures


def test_a_commit_is_checked_by_what_make_lint_runs():
    recipe = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    commands = re.findall(r"ruff [a-z-]+.*|\.ci/types", recipe)
    assert len(commands) == 3
    assert all(f" entry: .venv/bin/{c}\n" in hooks or f" entry: {c}\n" in hooks for c in commands)
