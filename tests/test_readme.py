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
TEXTS = {
    path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
}
BIN = Path(sys.executable).parent


def commands():
    """Return the commands in code blocks of README, docs and notebooks, and inline ones with a profile."""
    cells = [c for name in run.NOTEBOOKS for c in json.loads(run.source_path(name).read_text())["cells"]]
    told = "\n".join(
        [*TEXTS.values(), *("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")]
    )
    fenced = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", told, re.MULTILINE | re.DOTALL)
    blocks = "\n".join(block for language, block in fenced if not language)
    lines = [line.split(" #")[0].strip() for line in blocks.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`((?:cfdistill|papermill) [^`]*params/[^`]*)`", told)
    return sorted({c for c in [*lines, *inline] if c.startswith(("cfdistill ", "papermill ", "make "))})


COMMANDS = commands()
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
    done = subprocess.run(
        [BIN / "cfdistill", *shlex.split(command)[1:], *places], cwd=ROOT, stderr=subprocess.PIPE
    )
    assert done.returncode == 0, done.stderr[-2000:]
    [made] = (tmp_path / "results").iterdir()
    assert results.is_whole(made)
