"""A small study's first three stages, made without a teacher, for tests of what follows them."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from cfdistill import data, metrics, runs
from cfdistill.params import Params
from cfdistill.schema import Counterfactual, Question, Rationale, answer_text

TEST_DATA = Path(os.environ.get("CFDISTILL_TEST_DATA", runs.project_root().parent / "shared" / "data"))
"""Folder with the benchmarks' real files (`benchmarks/`) and published rationales (`rationales/`)."""


def committed(file: str, **where: str) -> Any:
    """Return the one row of the committed default study's table in which columns have these values."""
    table = metrics.read_csv(runs.project_root() / "results" / "offline", file)
    (row,) = (r for r in metrics.each_row(table) if all(getattr(r, k) == v for k, v in where.items()))
    return row


def counterfactual_of(question: Question) -> Counterfactual:
    """Return the question with its last word changed and the next option right."""
    changed = replace(
        question,
        id=f"{question.id}~cf",
        stem=f"{question.stem} Or not?",
        answer=(question.answer + 1) % len(question.options),
    )
    return Counterfactual(changed, question.id, f"{question.stem} [MASK]", votes=5, paths=5, edit_ratio=0.2)


def rationales_of(question: Question) -> list[Rationale]:
    """Return both views of a question."""
    answer = answer_text(question.options, question.answer)
    wrong = [option for i, option in enumerate(question.options) if i != question.answer]
    return [
        Rationale(question.id, "positive", f"It fits {question.options[question.answer]}. {answer}"),
        Rationale(question.id, "negative", f"It is not {', nor '.join(wrong)}. {answer}"),
    ]


def make_upstream(params: Params) -> None:
    """Complete the stages data, counterfactuals and rationales; one negative view is missing."""
    for dataset in dict.fromkeys([params.train_dataset, *params.test_datasets]):
        data.build(dataset, params)
    questions = data.questions(params.train_dataset, "train", params)
    counterfactuals = [counterfactual_of(question) for question in questions[::2]]
    with runs.stage("counterfactuals", params).draft(params) as draft:
        draft.write("counterfactuals.train.jsonl", counterfactuals)
    everything = [*questions, *(c.question for c in counterfactuals)]
    with runs.stage("rationales", params).draft(params) as draft:
        draft.write("rationales.train.jsonl", [r for q in everything for r in rationales_of(q)][:-1])


def write_csqa(folder: Path, count: int) -> None:
    """Write files like CommonsenseQA's official release: questions q0, q1, …, all with the answer B."""
    folder.mkdir(parents=True, exist_ok=True)
    choices = [
        {"label": label, "text": text}
        for label, text in zip("ABCDE", ("day", "night", "noon", "dawn", "never"), strict=True)
    ]
    rows = [
        {
            "id": f"q{number}",
            "question": {"stem": f"Eli needs lamp {number} to read. When is it?", "choices": choices},
            "answerKey": "B",
        }
        for number in range(count)
    ]
    for name in ("train_rand_split.jsonl", "dev_rand_split.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
