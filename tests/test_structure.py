"""The package's shape: imports go down, no circle, few lines, nothing heavy at import."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cfdistill"
FLOORS = (  # from below; a room is a file of the package or a folder
    {"errors", "progress", "methods"},
    {"files", "params", "schema"},
    {"store", "data"},
    {"teacher", "student"},
    {"generate", "evaluate"},
    {"pipeline", "show"},
    {"study"},
    {"cli"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imported(module):
    """Return the modules of the package that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name in MODULES and name not in ("cfdistill", module)}


def room(module):
    return module.split(".")[1]


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"cfdistill"}))
def test_imports_go_down(module):
    for other in imported(module):
        if room(other) != room(module):
            assert FLOOR[room(other)] < FLOOR[room(module)], f"{module} imports {other}"


def test_no_circle():
    done = set()

    def visit(module, above):
        assert module not in above, f"a circle: {' -> '.join([*above, module])}"
        if module not in done:
            for other in imported(module) - {module.rpartition(".")[0]}:
                visit(other, [*above, module])
            done.add(module)

    for module in MODULES:
        visit(module, [])


def test_thin():
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert sum(lines.values()) <= 6700
    assert max(lines.values()) <= 400, max(lines, key=lines.get)
    lengths = {
        f"{module}.{node.name}": node.end_lineno - node.lineno + 1
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert max(lengths.values()) <= 60, max(lengths, key=lengths.get)
    assert sorted(lengths.values())[len(lengths) // 2] <= 10
