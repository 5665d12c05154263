"""Which part of al_bench may import which, and how long its functions and files may be."""

import ast
import statistics
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "al_bench"
FILES = {".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}
MODULES = {name.removesuffix(".__init__"): ast.parse(path.read_text()) for name, path in FILES.items()}


def imports(module: str, at_start: bool = False) -> set[str]:
    """The modules of al_bench that one imports. at_start: when it is imported itself, and not inside a function."""
    tree = MODULES[module]
    nodes = [
        node for node in (tree.body if at_start else ast.walk(tree)) if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name for name in below if name in MODULES} or {node.module}
    return {name for name in names if name in MODULES}


def inside(part: str) -> list[str]:
    return [name for name in MODULES if f"{name}.".startswith(f"al_bench.{part}.")]


@pytest.mark.parametrize(
    "part, others",
    [
        ("strategies", ["config", "data", "models", "store", "labelling"]),
        ("analysis", ["data", "models", "strategies", "labelling"]),
        ("data", ["store", "models", "strategies", "labelling"]),
        ("store", ["data", "models", "strategies", "labelling"]),
        ("models", ["store", "loop", "labelling"]),
        ("labelling.images", ["labelling.labels"]),  # a data set holds no answers
        ("loop", ["labelling.labels", "labelling.session"]),  # answers come through the oracle
    ],
)
def test_a_part_imports_nothing_of_another(part, others):
    forbidden = {name for other in others for name in inside(other)}
    assert inside(part) and {m: found for m in inside(part) if (found := imports(m) & forbidden)} == {}


def test_nothing_that_runs_imports_the_checks():
    checks = {*inside("check")}
    assert {m for m in MODULES.keys() - checks if imports(m) & checks} == set()


def test_no_imports_go_round_in_a_circle():
    TopologicalSorter({m: imports(m, at_start=True) - {m} for m in MODULES}).prepare()  # raises CycleError


def test_functions_and_files_are_short():
    functions = {
        f"{module}:{node.lineno} {node.name}": node
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }
    n_lines = {name: node.end_lineno - node.lineno + 1 for name, node in functions.items()}
    assert {name: n for name, n in n_lines.items() if n > 60} == {}
    median, *_, p90 = statistics.quantiles(n_lines.values(), n=10, method="inclusive")[4:]
    assert median <= 8 and p90 <= 20
    positional = {name: [a.arg for a in (*n.args.posonlyargs, *n.args.args)] for name, n in functions.items()}
    assert {name for name, found in positional.items() if len(found) - (found[:1] == ["self"]) > 6} == set()
    assert {name for name, file in FILES.items() if len(file.read_text().splitlines()) > 350} == set()
