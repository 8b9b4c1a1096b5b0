"""The README quotes the committed results, and nothing else."""

import re
import subprocess

from cfdistill import metrics, results, runs
from cfdistill.runner import NOTEBOOKS
from cfdistill.tables import read_block

ROOT = runs.project_root()


def committed_results(name, folder):
    """Copy the committed tables: a study run since may have changed the files in the work tree."""
    folder.mkdir()
    for file in (*metrics.FILES[:2], metrics.SETTINGS, "manifest.json"):
        path = f"results/{name}/{file}"
        done = subprocess.run(["git", "show", f":{path}"], cwd=ROOT, capture_output=True)
        if done.returncode == 0 or (ROOT / path).is_file():  # a grid has no manifest of its own
            (folder / file).write_bytes(done.stdout if done.returncode == 0 else (ROOT / path).read_bytes())
    return folder


def test_numbers_are_those_of_the_committed_results(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("offline", "offline_full", "csqa_smollm2", *results.QUOTED_GRIDS):
        committed_results(name, tmp_path / name)
    blocks = results.readme_blocks(tmp_path)
    assert set(blocks) == {"results", "seeds", *results.QUOTED_GRIDS, "benchmark"}
    for name, block in blocks.items():
        assert read_block(text, name)[1].strip() == block.strip()


def test_links_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", text) if not t.startswith("http")]
    assert len(targets) > len(NOTEBOOKS)
    for target in targets:
        assert (ROOT / target).exists(), target
