"""Every notebook keeps the house rules: readable source, honest parameters, no hidden code."""

import ast
import json
import re

import pytest

from cfdistill.params import Params
from cfdistill.runner import NOTEBOOKS, source_path

FORBIDDEN = {
    "shell or install": r"^\s*[!%]",
    "class": r"^class ",
    "path tricks": r"sys\.path|os\.chdir",
    "absolute path": r"[\"'](/home|/tmp|/root|/work|C:)",
    "secret": r"sk-[A-Za-z0-9]{8}|api_key\s*=",
    "broad except": r"except( Exception)?:",
    "warning filter": r"filterwarnings",
    "profile branch": r"if .*(smoke|profile)",
}


@pytest.fixture(scope="module", params=NOTEBOOKS)
def notebook(request):
    return json.loads(source_path(request.param).read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def parameters(notebook):
    [cell] = [c for c in code_cells(notebook) if "parameters" in c["metadata"].get("tags", [])]
    return "".join(cell["source"])


def declared(notebook):
    body = ast.parse(parameters(notebook)).body
    assert all(isinstance(line, ast.Assign) for line in body)
    return {line.targets[0].id: ast.literal_eval(line.value) for line in body}


def test_parameters_are_commented_literals_with_the_defaults_of_the_package(notebook):
    defaults = Params().model_dump()
    assert declared(notebook) == {name: defaults[name] for name in declared(notebook)}
    assert all("#" in line or line.startswith("test_datasets") for line in parameters(notebook).splitlines())


def test_notebooks_together_declare_every_parameter():
    notebooks = [json.loads(source_path(name).read_text(encoding="utf-8")) for name in NOTEBOOKS]
    assert set().union(*map(declared, notebooks)) == set(Params.model_fields)


def test_source_has_no_outputs(notebook):
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code_cells(notebook))
    assert "papermill" not in notebook["metadata"]


def test_text_outweighs_code(notebook):
    cells, code = notebook["cells"], code_cells(notebook)
    assert len(code) <= 0.55 * len(cells)
    assert max(len(cell["source"]) for cell in code) <= 25
    assert sum(len(cell["source"]) for cell in code) / len(code) <= 10


def test_nothing_forbidden(notebook):
    for cell in code_cells(notebook):
        for what, pattern in FORBIDDEN.items():
            assert not re.search(pattern, "".join(cell["source"]), re.MULTILINE), what


def test_functions_are_short_and_results_are_asserted(notebook):
    source = "\n".join("".join(cell["source"]) for cell in code_cells(notebook))
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 10, node.name
    assert any(isinstance(node, ast.Assert) for node in ast.walk(tree))


def test_chapters_say_what_they_need_and_lead_on(notebook):
    text = "\n".join("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown")
    for wanted in ("**You will learn**", "| needs | makes |", "## Parameters", "## Recap", "**Try it.**"):
        assert wanted in text
    for target in re.findall(r"\]\((\d\d_\w+)\.ipynb\)", text):
        assert target in NOTEBOOKS
