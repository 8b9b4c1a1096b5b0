"""Every notebook keeps the house rules: readable source, honest parameters, no hidden code."""

import ast
import json
import re

import pytest

from cfdistill.methods import METHODS
from cfdistill.params import DATASETS, Params
from cfdistill.study.run import NOTEBOOKS, source_path

FORBIDDEN = {
    "shell or install": r"^\s*[!%]",
    "class": r"^class ",
    "path tricks": r"sys\.path|os\.chdir",
    "absolute path": r"[\"'](/home|/tmp|/root|/work|C:)",
    "secret": r"sk-[A-Za-z0-9]{8}|api_key\s*=",
    "broad except": r"except( Exception)?:",
    "warning filter": r"filterwarnings",
    "profile branch": r"if .*(smoke|profile)",
    "a method or data set taken for granted": rf"[\"']({'|'.join((*METHODS, *DATASETS))})[\"']",
}


@pytest.fixture(scope="module", params=NOTEBOOKS)
def notebook(request):
    return json.loads(source_path(request.param).read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def is_parameters(cell):
    return "parameters" in cell["metadata"].get("tags", [])


def test_parameters_are_few_commented_literals_with_the_defaults_of_the_package(notebook):
    (cell,), defaults = filter(is_parameters, code_cells(notebook)), Params().model_dump()
    body = ast.parse("".join(cell["source"])).body
    assert all(isinstance(line, ast.Assign) for line in body)
    declared = {line.targets[0].id: ast.literal_eval(line.value) for line in body}
    assert declared == {name: defaults[name] for name in declared}
    assert len(cell["source"]) <= 12
    assert all("#" in line or line.startswith("test_datasets") for line in cell["source"])


def test_text_outweighs_code_and_nothing_was_executed(notebook):
    cells, code = notebook["cells"], code_cells(notebook)
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    assert "papermill" not in notebook["metadata"]
    assert len(code) <= 0.55 * len(cells)
    assert max(len(cell["source"]) for cell in code) <= 25
    assert sum(len(cell["source"]) for cell in code) / len(code) <= 10


def test_nothing_forbidden(notebook):
    for cell in code_cells(notebook):
        for what, pattern in FORBIDDEN.items():
            found = re.search(pattern, "".join(cell["source"]), re.MULTILINE)
            assert not found or is_parameters(cell), what


def test_functions_are_short_and_assertions_say_what_they_found(notebook):
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in code_cells(notebook)))
    nodes = list(ast.walk(tree))
    assert [n.name for n in nodes if isinstance(n, ast.FunctionDef) and n.end_lineno - n.lineno > 9] == []
    asserted = [node for node in nodes if isinstance(node, ast.Assert)]
    assert asserted
    assert [ast.unparse(node) for node in asserted if node.msg is None] == []


def test_chapters_say_what_they_need_and_lead_on(notebook):
    text = "\n".join("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown")
    for wanted in ("**You will learn**", "| needs | makes |", "## Parameters", "## Recap", "**Try it.**"):
        assert wanted in text
    for target in re.findall(r"\]\((\d\d_\w+)\.ipynb\)", text):
        assert target in NOTEBOOKS
