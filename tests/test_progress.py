import json
from pathlib import Path

import pytest

from cfdistill.progress import PROGRESS_FILE, Progress


def test_every_tenth_is_printed_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    progress = Progress(50, "step")
    for done in range(1, 51):
        progress.update(done, "loss 1.20")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[0] == "step 5/50 · loss 1.20 · 1:30 left"
    assert lines[-1] == "step 50/50 · loss 1.20"


def test_steps_done_earlier_do_not_count_as_fast(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0, 10])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    Progress(10, "step", done=5).update(6)
    assert capsys.readouterr().out == "step 6/10 · 0:40 left\n"


def test_file_tells_the_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "progress.json"
    monkeypatch.setenv(PROGRESS_FILE, str(file))
    Progress(4, "answer").update(4)
    assert json.loads(file.read_text()) == {"text": "answer 4/4", "fraction": 1.0}
    assert list(tmp_path.iterdir()) == [file]
