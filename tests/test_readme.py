"""README and docs: the numbers are those of the results, commands run as printed, links lead somewhere."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cfdistill import cli, files
from cfdistill.params import Params
from cfdistill.study import grid, results, run

ROOT = files.project_root()
TEXTS = {path.name: path.read_text("utf-8") for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}

# The commands in code blocks of README, docs and notebooks, and inline ones with a profile.
CELLS = [c for name in run.NOTEBOOKS for c in json.loads(run.source_path(name).read_text())["cells"]]
TOLD = "\n".join([*TEXTS.values(), *("".join(c["source"]) for c in CELLS if c["cell_type"] == "markdown")])
FENCED = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", TOLD, re.MULTILINE | re.DOTALL)
BLOCKS = "\n".join(block for language, block in FENCED if not language)
LINES = [line.split(" #")[0].strip() for line in BLOCKS.replace("\\\n", " ").splitlines()]
LINES += re.findall(r"`((?:cfdistill|papermill) [^`]*params/[^`]*)`", TOLD)
COMMANDS = sorted({line for line in LINES if line.startswith(("cfdistill ", "papermill ", "make "))})
SMOKE = [c for c in COMMANDS if c.startswith("cfdistill run params/smoke.yaml") and "live" not in c]


@pytest.mark.parametrize("tool", ["readme.py", "results_page.py"])
def test_numbers_are_those_of_the_committed_results(tool):
    check = [sys.executable, f"tools/{tool}", "--check"]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or f"python tools/{tool} writes them anew"


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    place = ROOT if name == "README.md" else ROOT / "docs"
    assert name != "README.md" or len(TEXTS[name].splitlines()) <= 150
    targets = [t for t in re.findall(r"\]\(([^)#]+)[^)]*\)", TEXTS[name]) if not t.startswith("http")]
    assert [target for target in targets if not (place / target).exists()] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one_that_there_is(command):
    program, *words = shlex.split(command)
    if program == "make":
        assert re.search(rf"^{words[0]}:.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if program == "papermill":
        assert (ROOT / words[0]).is_file()
        words = ["run", words[words.index("-f") + 1], *words[words.index("-f") + 2 :]]
    args = vars(cli._parser().parse_args(words))
    profile, changed = args.get("profile"), dict(args.get("p") or {})
    if args.get("grid"):
        assert grid.read(args["grid"], changed).cells
    elif profile and profile.parts[0] == "params":
        assert Params.from_yaml(ROOT / profile, changed)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", SMOKE)
def test_a_small_study_runs_as_printed(command, tmp_path):
    places = ["-p", "run_root", tmp_path / "runs", "-p", "results_root", tmp_path / "results"]
    words = [Path(sys.executable).with_name("cfdistill"), *shlex.split(command)[1:], *places]
    done = subprocess.run(words, cwd=ROOT, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr[-2000:]
    [made] = (tmp_path / "results").iterdir()
    assert results.is_whole(made)
