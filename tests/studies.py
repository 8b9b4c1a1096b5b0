"""A small study's first three stages, made without a teacher, for tests of what follows them."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from cfdistill import files, pipeline
from cfdistill.evaluate import metrics
from cfdistill.generate import counterfactual
from cfdistill.params import Params
from cfdistill.schema import Counterfactual, Question, Rationale, answer_text

TEST_DATA = Path(os.environ.get("CFDISTILL_TEST_DATA", files.project_root().parent / "shared" / "data"))
"""Folder with the benchmarks' real files (`benchmarks/`) and published rationales (`rationales/`)."""


def committed(file: str, **where: str) -> Any:
    """Return the one row of the committed default study's table in which columns have these values."""
    table = metrics.read_csv(files.project_root() / "results" / "offline", file)
    (row,) = (r for r in metrics.each_row(table) if all(getattr(r, k) == v for k, v in where.items()))
    return row


def counterfactual_of(question: Question) -> Counterfactual:
    """Return the question with its last word changed and the next option right."""
    answer = (question.answer + 1) % len(question.options)
    changed = replace(question, id=f"{question.id}~cf", stem=f"{question.stem} Or not?", answer=answer)
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
    for part in pipeline.parts("data", params):
        pipeline.build("data", params, **part)
    questions = pipeline.questions(params.train_dataset, "train", params)
    rewrites = [counterfactual_of(question) for question in questions[::2]]
    everything = [*questions, *(c.question for c in rewrites)]
    views = [r for q in everything for r in rationales_of(q)][:-1]
    for name, records in (("counterfactuals", rewrites), ("rationales", views)):
        for part in pipeline.parts(name, params):
            stage = pipeline.locate(name, params, **part)
            if not stage.is_complete():
                with stage.draft(params) as draft:
                    draft.write(f"{name}.train.jsonl", records)
                    counterfactual.funnel_table([]).to_csv(draft.path / "funnel.csv", index=False)


def write_csqa(folder: Path, count: int) -> None:
    """Write files like CommonsenseQA's official release: questions q0, q1, …, all with the answer B."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = ("day", "night", "noon", "dawn", "never")
    choices = [{"label": label, "text": text} for label, text in zip("ABCDE", texts, strict=True)]
    for split, lamp in (("train", "lamp"), ("dev", "candle")):
        stems = [f"Eli needs {lamp} {number} to read. When is it?" for number in range(count)]
        rows = [
            {"id": f"q{number}", "question": {"stem": stem, "choices": choices}, "answerKey": "B"}
            for number, stem in enumerate(stems)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}_rand_split.jsonl").write_text(text, encoding="utf-8")
