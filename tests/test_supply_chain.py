"""No file or parameter runs as code, and the weights are those we know."""

import ast
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from papermill import iorw, parameterize

from cfdistill import files
from cfdistill.errors import CfdistillError
from cfdistill.params import Params
from cfdistill.study import run

ROOT = files.project_root()
UNSAFE_MODULES = {"builtins", "runpy", "code", "shelve", "marshal"}
UNSAFE_MODULES |= {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "jsonpickle"}
OWN_NAMES = {"torch", "os", "yaml", "subprocess", "importlib"}  # never under another, where calls would hide
UNSAFE_CALLS = {
    *("eval", "exec", "compile", "__import__", "breakpoint", "os.system", "os.popen", "np.load"),
    *("numpy.load", "torch.load", "torch.jit.load", "torch.hub.load", "pd.read_pickle", "pandas.read_pickle"),
    *("importlib.import_module", "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"),
}
# by SafeLoaders: one refuses a key that stands there twice, the other one is written in C
KNOWN = {f"cfdistill/{name}.py": {"yaml.load"} for name in ("params", "methods", "show/figures")}
KNOWN["cfdistill/cli.py"] = {
    "yaml.load",
    "importlib.import_module",
}  # what commands.yaml of the package names
UNSAFE_ARGUMENTS = {"trust_remote_code", "allow_pickle", "shell", "weights_only"}


def faults(code):
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


UNSAFE = """import pickle
from pickle import loads
from torch import load
x = eval('1')
torch.load(f, weights_only=False)
yaml.load(text, Loader=yaml.Loader)
AutoModel.from_pretrained(p, trust_remote_code=True)
subprocess.run(c, shell=True)
np.load(f, allow_pickle=True)
import torch as t; t.load(f)
f(**{'trust_remote_code': True})
import builtins; builtins.eval('1')"""


def test_no_source_can_run_a_file_as_code_and_the_scan_sees_each_kind():
    assert [line for line in UNSAFE.splitlines() if not faults(line)] == []
    folders = ("cfdistill", "benchmarks", "tools")
    sources = {path: path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py")}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        sources[path] = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    found = {str(path.relative_to(ROOT)): faults(code) for path, code in sources.items()}
    assert len(found) > 40
    assert {path: seen for path, seen in found.items() if set(seen) - KNOWN.get(path, set())} == {}


HOSTILE = ['"; import os; os.remove("x"); "', "'''\nraise SystemExit\n'''", '"""\nraise SystemExit\n"""']
HOSTILE += ["\\", '\\"', "\\\n", "{seed} {0} {params.__class__} {{}} {", "a\u2028b\u2029c\x85d\x0ce\rf"]
HOSTILE += ["# comment\n%%bash\n!ls", "$(touch x) `touch x` ; touch x", "\N{RIGHT-TO-LEFT OVERRIDE}emit"]
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
NOTEBOOK = iorw.load_notebook_node(str(run.source_path(run.NOTEBOOKS[0])))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(HOSTILE) | TEXTS)
def test_any_text_arrives_in_a_notebook_as_the_text_it_is(text):
    given = Params(run_root=text, teacher_model=text, rationale_file=text).model_dump()
    filled = parameterize.parameterize_notebook(NOTEBOOK, given, kernel_name="python3", language="python")
    (cell,) = (c for c in filled.cells if "injected-parameters" in c.metadata.get("tags", []))
    statements = ast.parse(cell.source).body
    assert all(isinstance(s, ast.Assign) and isinstance(s.targets[0], ast.Name) for s in statements)
    assert {s.targets[0].id: ast.literal_eval(s.value) for s in statements} == given


def test_what_a_shell_or_papermill_would_read_in_a_path_is_quoted(tmp_path):
    folder, profile = tmp_path / "{seed} {0.__class__}", tmp_path / "a; touch x.yaml"
    assert parameterize.parameterize_path(run._plain(folder), {"seed": 1}) == str(folder)
    profile.write_text("seed: 1")
    (line,) = run.commands(profile, {"run_root": "$(touch x)", "profile": "2026"}, ["01"])
    assert f"-f '{profile}'" in line
    assert line.endswith("-r run_root '$(touch x)' -r profile 2026")  # -p would make a number of it


def test_names_of_folders_cannot_lead_elsewhere():
    for name in ("..", ".", "", "/etc", "a/b", "a\\b", "~", "-rf", "a\n", "x" * 101):
        with pytest.raises(CfdistillError, match="profile: must be a plain name"):
            Params.build({"profile": name})
    with pytest.raises(CfdistillError, match=r"^~nobody-of-that-name/runs: .*; write the folder out"):
        files.resolve("~nobody-of-that-name/runs")


def test_every_package_is_pinned_to_one_version():
    packages = re.findall("(?m)^[^#\\-\\s].*", (ROOT / "requirements.lock").read_text())
    assert len(packages) > 100
    assert all("==" in line for line in packages)


def test_no_file_of_the_project_holds_a_key():
    kinds = [r"(?<![A-Za-z0-9])sk-(?!test-)[\w-]{20,}", r"hf_\w{30,}", r"gh[pousr]_\w{30,}"]
    key = re.compile("|".join([*kinds, "AKIA[0-9A-Z]{16}", "-----BEGIN [A-Z ]*PRIVATE KEY"]))
    assert key.search("key=sk-" + "a1B2" * 8)
    assert not key.search("cf-random-mask-smollm2-135m-seed0")
    folders = ("benchmarks", "cfdistill", "docs", "notebooks", "params", "results", "tests", "tools")
    found = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file()]
    assert len(found) > 100
    assert [p for p in found if key.search(p.read_bytes().decode("latin-1"))] == []
