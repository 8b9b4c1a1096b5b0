"""The README quotes the committed results, and nothing else."""

import re
import subprocess
import sys

from cfdistill import files
from cfdistill.study.run import NOTEBOOKS

ROOT = files.project_root()


def test_numbers_are_those_of_the_committed_results():
    check = [sys.executable, "tools/readme.py", "--check"]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or "python tools/readme.py writes them anew"


def test_links_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", text) if not t.startswith("http")]
    assert len(targets) > len(NOTEBOOKS)
    for target in targets:
        assert (ROOT / target).exists(), target
