"""`cfdistill clean` removes what interrupted runs left, and nothing that anybody has or uses."""

import pytest
from filelock import FileLock

from cfdistill import leftovers, runs
from cfdistill.cli import main
from cfdistill.schema import Rationale


@pytest.fixture
def root(small_params):
    """Return a run root with a complete stage, a teacher cache, a finished notebook, and leftovers."""
    with runs.stage("rationales", small_params).draft(small_params) as draft:
        draft.write("a.jsonl", [Rationale("q", "positive", "text")])
    root = runs.resolve(small_params.run_root)
    for name in (
        "training/a.partial/checkpoints/checkpoint-1/weights",
        "training/a.lock",
        "students/b.partial/weights",
        "notebooks/smoke-1/04_training.unfinished.ipynb",
        "notebooks/smoke-1/04_training.ipynb",
        "notebooks/smoke-1/04_training.json",
        "notebooks/smoke-1/progress.json",
        "notebooks/smoke-1.lock",
        "teacher/cache.sqlite",
        "teacher/cache.sqlite.lock",
        "teacher/answers.jsonl.partial",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    return root


def names(root, paths):
    return {str(path.relative_to(root)) for path in paths}


LEFT = {
    "training/a.partial",
    "students/b.partial",
    "notebooks/smoke-1/04_training.unfinished.ipynb",
    "notebooks/smoke-1/progress.json",
    "training/a.lock",
    "notebooks/smoke-1.lock",
}


def test_leftovers_are_listed_and_then_removed(root, small_params, capsys):
    before = names(root, root.rglob("*"))
    (lock,) = names(root, root.glob("rationales/*.lock"))
    assert main(["clean", str(root), "--dry-run"]) == 0
    listed = {line.removeprefix(f"would remove {root}/") for line in capsys.readouterr().out.splitlines()}
    assert listed == LEFT | {lock}
    assert names(root, root.rglob("*")) == before
    assert main(["clean", str(root)]) == 0
    gone = before - names(root, root.rglob("*"))
    assert {name for name in gone if ".partial/" not in name} == LEFT | {lock}
    assert runs.stage("rationales", small_params).is_complete()
    assert leftovers.clean(root) == []


def test_what_a_process_works_on_is_left_alone(root):
    with FileLock(root / "training" / "a.lock"), FileLock(root / "notebooks" / "smoke-1.lock"):
        kept = names(root, leftovers.clean(root))
    assert "students/b.partial" in kept
    assert kept.isdisjoint({"training/a.partial", "training/a.lock", "notebooks/smoke-1.lock"})
    assert (root / "notebooks" / "smoke-1" / "04_training.unfinished.ipynb").is_file()


def test_a_folder_that_is_not_there_has_no_leftovers(tmp_path):
    assert leftovers.clean(tmp_path / "none") == []
