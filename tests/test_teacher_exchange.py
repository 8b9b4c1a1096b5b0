"""Caches: older layouts, moving answers as JSON Lines, and what `cfdistill teacher stats` says."""

import json
import multiprocessing
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml

from cfdistill import counterfactual, data
from cfdistill.cli import main
from cfdistill.errors import TeacherError
from cfdistill.params import Params
from cfdistill.teacher import cache as cache_module
from cfdistill.teacher import prices
from cfdistill.teacher.cache import LAYOUT, MIGRATIONS, Answer, Cache
from cfdistill.teacher.exchange import export_cache, import_cache

FIRST_LAYOUT = Answer._fields[:10]


def answer(number: int, content: str = "fine", **changes: Any) -> Answer:
    body = {
        "model": "served",
        "choices": [{"message": {"content": content}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    }
    return Answer.read(
        json.dumps(body), key=f"{number:064x}", task="mask", base_url="http://u/v1", model="m"
    )._replace(**{"created": "2026-01-31T12:00:00+00:00", **changes})


def filled(path: Path, *answers: Answer) -> Cache:
    cache = Cache(path)
    cache.put_all(answers)
    return cache


def first_layout(path: Path, *answers: Answer) -> None:
    """Make a file as the first version did."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(MIGRATIONS[0])
    db.execute("PRAGMA user_version = 1")
    db.executemany(
        f"INSERT INTO answers VALUES ({', '.join('?' * len(FIRST_LAYOUT))})",
        [row[: len(FIRST_LAYOUT)] for row in answers],
    )
    db.close()


def layout(path: Path) -> int:
    db = sqlite3.connect(path)
    found: int = db.execute("PRAGMA user_version").fetchone()[0]
    db.close()
    return found


# layouts


def test_an_older_file_is_brought_up_to_date(tmp_path: Path) -> None:
    first_layout(tmp_path / "old.sqlite", answer(1), answer(2))
    cache = Cache(tmp_path / "old.sqlite")
    cache.put(answer(3, batched=1))
    assert list(cache.answers()) == [answer(1), answer(2), answer(3, batched=1)]
    cache.close()
    assert layout(tmp_path / "old.sqlite") == LAYOUT


def test_an_older_recording_is_read_and_left_as_it_is(tmp_path: Path) -> None:
    first_layout(tmp_path / "old.sqlite", answer(1))
    before = (tmp_path / "old.sqlite").read_bytes()
    (tmp_path / "old.sqlite").chmod(0o444)
    cache = Cache(tmp_path / "old.sqlite", read_only=True)
    assert list(cache.answers()) == [answer(1)]
    cache.close()
    assert (tmp_path / "old.sqlite").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["old.sqlite"]


def test_a_failed_migration_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_layout(tmp_path / "old.sqlite", answer(1))
    steps = (*MIGRATIONS, "CREATE TABLE extra (name)", "ALTER TABLE nowhere ADD COLUMN name")
    monkeypatch.setattr(cache_module, "MIGRATIONS", steps)
    monkeypatch.setattr(cache_module, "LAYOUT", len(steps))
    before = (tmp_path / "old.sqlite").read_bytes()
    with pytest.raises(TeacherError, match="no such table: nowhere"):
        Cache(tmp_path / "old.sqlite")
    assert (tmp_path / "old.sqlite").read_bytes() == before
    monkeypatch.undo()
    cache = Cache(tmp_path / "old.sqlite")  # and the next version finds all it needs
    assert list(cache.answers()) == [answer(1)]
    cache.close()


def migrate_and_add(path: str, start: Any, number: int) -> None:
    start.wait()
    cache = Cache(Path(path))
    cache.put(answer(number))
    cache.close()


def test_processes_that_migrate_at_once_take_turns(tmp_path: Path) -> None:
    first_layout(tmp_path / "old.sqlite", answer(0))
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    workers = [
        context.Process(target=migrate_and_add, args=(str(tmp_path / "old.sqlite"), start, number))
        for number in range(1, 5)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=20)
    assert [worker.exitcode for worker in workers] == [0] * 4
    cache = Cache(tmp_path / "old.sqlite")
    assert list(cache.answers()) == [answer(number) for number in range(5)]
    cache.close()


# export and import


def test_answers_survive_the_journey_byte_for_byte(tmp_path: Path) -> None:
    strange = answer(1, "emoji 🦡, العربية, NUL \0, <b>html</b>, a line\nbreak, \u2028", batched=1)
    one = filled(tmp_path / "one.sqlite", strange, answer(2, latency_s=0.25))
    assert export_cache(one, tmp_path / "answers.jsonl") == 2
    lines = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["schema_version"] for line in lines[:-1]] == [1, 1]
    two = Cache(tmp_path / "two.sqlite")
    assert import_cache(tmp_path / "answers.jsonl", two) == {"new": 2, "known": 0, "conflicting": 0}
    assert list(two.answers()) == list(one.answers()) == [strange, answer(2, latency_s=0.25)]
    assert export_cache(two, tmp_path / "again.jsonl") == 2
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "answers.jsonl").read_bytes()
    one.close()
    two.close()


def test_importing_twice_or_what_overlaps_changes_nothing(tmp_path: Path) -> None:
    one = filled(tmp_path / "one.sqlite", answer(1), answer(2))
    two = filled(tmp_path / "two.sqlite", answer(2), answer(3), answer(1, "another"))
    export_cache(two, tmp_path / "two.jsonl")
    assert import_cache(tmp_path / "two.jsonl", one) == {"new": 1, "known": 1, "conflicting": 1}
    merged = list(one.answers())
    assert merged == [answer(1), answer(2), answer(3)]  # the first answer to a key stays
    assert import_cache(tmp_path / "two.jsonl", one) == {"new": 0, "known": 2, "conflicting": 1}
    assert list(one.answers()) == merged
    one.close()
    two.close()


def good_line(number: int) -> dict[str, Any]:
    return {"schema_version": 1, **answer(number)._asdict()}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "Invalid JSON"),
        ("", "Invalid JSON"),
        ("[]", "Input should be an object"),
        ({"schema_version": 2}, "needs schema_version 1"),
        ({"key": "short"}, "key: String should match pattern"),
        ({"task": None}, "task: Input should be a valid string"),
        ({"prompt_tokens": -1}, "prompt_tokens: Input should be greater than or equal to 0"),
        ({"prompt_tokens": 2**63}, "prompt_tokens: Input should be less than"),
        ({"completion_tokens": "3"}, "completion_tokens: Input should be a valid integer"),
        ({"latency_s": float("nan")}, "latency_s: Input should be "),
        ({"response": "no JSON"}, "response: no chat completion"),
        ({"response": '{"choices": []}'}, "response: no chat completion"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ('{"key": "\\ud800"}', "Invalid JSON|surrogate"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_imported(tmp_path: Path, bad: Any, message: str) -> None:
    last = bad if isinstance(bad, str) else json.dumps(good_line(2) | bad)
    (tmp_path / "file.jsonl").write_text(f"{json.dumps(good_line(1))}\n{last}\n")
    cache = filled(tmp_path / "cache.sqlite", answer(9))
    with pytest.raises(TeacherError, match=rf"file\.jsonl, line 2: .*({message})") as caught:
        import_cache(tmp_path / "file.jsonl", cache)
    assert "\n" not in str(caught.value)
    assert list(cache.answers()) == [answer(9)]
    assert cache.put(answer(1))  # the transaction is over
    cache.close()


def test_the_command_line_moves_a_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two, file = tmp_path / "one.sqlite", tmp_path / "two.sqlite", tmp_path / "answers.jsonl"
    filled(one, answer(1), answer(2)).close()
    assert main(["teacher", "export-cache", "--cache", str(one), str(file)]) == 0
    assert main(["teacher", "import-cache", "--cache", str(two), str(file)]) == 0
    said = capsys.readouterr().out
    assert f"2 answers of {one} written to {file}" in said
    assert f"2 answers added to {two}, 0 were there, 0 differ" in said
    assert main(["teacher", "export-cache", "--cache", str(tmp_path / "none.sqlite"), str(file)]) == 1
    assert "none.sqlite is missing" in capsys.readouterr().err
    assert main(["teacher", "import-cache", "--cache", str(two), str(tmp_path / "none.jsonl")]) == 1
    assert "none.jsonl is missing" in capsys.readouterr().err


# stats


def test_stats_count_tokens_and_dollars_by_model_and_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    million = {"model": "gpt-5.2", "served_model": "gpt-5.2-2025-12-11", "prompt_tokens": 1_000_000}
    filled(
        tmp_path / "cache.sqlite",
        answer(1, **million, completion_tokens=0),
        answer(2, **million, completion_tokens=1_000_000),
        answer(3, **million, completion_tokens=0, batched=1),  # at half price
        answer(4, task="fill"),  # by a model without a price
    ).close()
    assert main(["teacher", "stats", "--cache", str(tmp_path / "cache.sqlite")]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    price = prices.find("gpt-5.2", Params())
    assert price is not None
    dated = ["gpt-5.2", "gpt-5.2-2025-12-11", "http://u/v1"]
    direct, batch = 2 * price.input + price.output, price.input * (1 - price.batch_discount)
    assert table[2:] == [
        [*dated, "mask", "2", "2,000,000", "1,000,000", f"{direct:.4f}"],
        [*dated, "(batch)", "mask", "1", "1,000,000", "0", f"{batch:.4f}"],
        ["m", "served", "http://u/v1", "fill", "1", "7", "3", "no", "price"],
        ["all", "4", "3,000,007", "1,000,003", f"{direct + batch:.4f}"],
    ]


def test_stats_of_a_study_tell_how_often_the_cache_answered(
    small_params: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "study.yaml"
    profile.write_text(yaml.safe_dump(small_params.model_dump()))
    assert main(["teacher", "stats", str(profile)]) == 1
    assert "cache.sqlite is missing" in capsys.readouterr().err
    for dataset in small_params.test_datasets:
        data.build(dataset, small_params)
    first = counterfactual.build(small_params)
    asked = first.manifest()["notes"]["teacher"]["requests"]
    assert main(["teacher", "stats", str(profile)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == [
        f"counterfactuals: 0 of {asked} answers were in the cache (0%)",
        "rationales: not made yet",
    ]
    shutil.rmtree(first.path)
    counterfactual.build(small_params)
    assert main(["teacher", "stats", str(profile)]) == 0
    assert f"counterfactuals: {asked} of {asked} answers were in the cache (100%)" in capsys.readouterr().out
