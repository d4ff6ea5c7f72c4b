"""How the benchmarks hang together: no circles, and nothing private of liftcore."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in ROOT.glob("bench/**/*.py")}


def imported(file: Path) -> set[str]:
    """MODULE and MODULE.NAME of every import of a file, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_no_file_imports_itself_through_others():
    graph = {name: imported(file) & FILES.keys() for name, file in FILES.items()}
    assert len([*TopologicalSorter(graph).static_order()]) == len(FILES) > 30


def test_nothing_private_of_liftcore_is_used():
    for file in FILES.values():
        private = [n for n in imported(file) if n.startswith("liftcore.") and "._" in n]
        assert not private, file
        assert "_liftcore_" not in file.read_text(), file
