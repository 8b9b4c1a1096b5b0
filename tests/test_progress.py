from cfdistill.progress import PAUSE, Progress


def test_every_tenth_is_told_with_the_time_left(capsys, monkeypatch):
    monkeypatch.delenv(PAUSE, raising=False)
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    progress = Progress(50, "step")
    for _ in range(50):
        progress.advance(1, "loss 1.20")
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 10
    assert told.splitlines()[0] == "step 5/50 · loss 1.20 · 1:30 left"
    assert told.splitlines()[-1] == "step 50/50 · loss 1.20"
    assert "\r" not in told  # it may go into a file
    clock = iter([0, 10])
    Progress(10, "step", done=5).advance(1)  # steps done earlier do not count as fast
    assert capsys.readouterr().err == "step 6/10 · 0:40 left\n"
    monkeypatch.undo()
    Progress(4, "").advance(4)
    assert capsys.readouterr().err == ""


def test_in_a_file_there_is_at_most_a_line_a_minute(capsys, monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    monkeypatch.setenv(PAUSE, "60")
    progress = Progress(20, "step")
    for _ in range(20):
        progress.advance(1)
    assert [line.split(" ·")[0] for line in capsys.readouterr().err.splitlines()] == [
        *("step 6/20", "step 12/20", "step 18/20"),
    ]
