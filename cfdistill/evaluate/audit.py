"""Two audits of a trained student, each of which changes one thing of what it is given (our choice)."""

from collections.abc import Mapping
from itertools import product

import pandas as pd

from cfdistill.evaluate import stats
from cfdistill.evaluate.predict import Answers, Questions, answered, predict
from cfdistill.methods import METHODS
from cfdistill.params import Params
from cfdistill.schema import DIRECT, Question, options_text, prompt_text
from cfdistill.student import decode, models
from cfdistill.student.models import Student

CONDITIONS = {  # of every audit; the first one changes nothing
    "input": ("everything", "options alone", "question alone"),
    "rationale": ("its own", "truncated", "another question's"),
}
COLUMNS = [
    "train_dataset", "method", "student", "seed", "test_split", "audit", "condition", "n", "accuracy",
    "ci_low", "ci_high", "same_answer", "same_low", "same_high",
]  # fmt: skip


def choose_questions(questions: Questions, params: Params) -> list[Question]:
    """Return `params.audit_questions` of the questions, spread evenly over them."""
    count = min(params.audit_questions, len(questions))
    return [questions[i * len(questions) // count] for i in range(count)]


def audit(student: Student, questions: Questions, method: str, params: Params, known: Answers) -> Answers:
    """Return a student's answers under every condition; own words come from the evaluation, if `known`.

    A student that learned only labels has one audit.
    """
    label = METHODS[method].scoring == "label"
    found = {"input": read_input(student, questions, "" if label else DIRECT, params)}
    if not label:
        given = {answer.question_id: answer for answer in known if answer.scoring == "direct"}
        direct = (
            [given[q.id] for q in questions]
            if given
            else predict(student, questions, method, "direct", params)
        )
        found["rationale"] = follow_rationale(student, questions, [own.text for own in direct], params)
    return [
        answered(question, method, f"{name}/{condition}", option, question.options[option], True)
        for name, own in found.items()
        for (condition, question), option in zip(product(CONDITIONS[name], questions), own, strict=True)
    ]


def read_input(student: Student, questions: Questions, token: str, params: Params) -> list[int]:
    """Let a student name its answer at once: from everything, from the options, from the question."""
    asked = [(question, prompt_text(question, token)) for question in questions]
    prompts = [
        *(prompt for _, prompt in asked),
        *(prompt.removeprefix(f"{q.stem}\n") for q, prompt in asked),
        *(prompt.replace(f"{options_text(q.options)}\n", "") for q, prompt in asked),
    ]
    return _choose(student, questions, prompts, [""] * len(prompts), params)


def follow_rationale(student: Student, questions: Questions, texts: list[str], params: Params) -> list[int]:
    """Put a rationale written before into a student's mouth and see what follows (Lanham et al., 2023)."""
    own, others = [decode.rationale_of(text) for text in texts], []
    halves = [" ".join(text.split()[: len(text.split()) // 2]) for text in own]
    for i, q in enumerate(questions):  # the next question of another scene, around to the beginning
        following = [*range(i + 1, len(questions)), *range(i)]
        apart = (own[j] for j in following if not q.scene or questions[j].scene != q.scene)
        others.append(next(apart, own[i]))
    prompts = [prompt_text(question, DIRECT) for question in questions] * 3
    return _choose(student, questions, prompts, [*own, *halves, *others], params)


def _choose(
    student: Student, questions: Questions, prompts: list[str], said: list[str], params: Params
) -> list[int]:
    """Let a student choose after each prompt and rationale; questions come round once per condition."""
    everyone = [*questions] * (len(prompts) // len(questions))
    begun = [decode.concluding(text) for text in said]
    return decode.choose(student, prompts, begun, everyone, params.eval_batch_size)


def table(answers: Mapping[str, Answers], params: Params, split: str) -> pd.DataFrame:
    """Return one row per method and condition; `same_answer`: answered as under the audit's first one."""
    rows = []
    for method, own in answers.items():
        run = [params.train_dataset, method, models.label(params), params.seed, split]
        by_name = {p.scoring: [q for q in own if q.scoring == p.scoring] for p in own}
        for name, found in by_name.items():
            audited, condition = name.split("/")
            untouched, n = by_name[f"{audited}/{CONDITIONS[audited][0]}"], len(found)
            right = sum(p.predicted == p.gold for p in found)
            same = sum(p.predicted == q.predicted for p, q in zip(found, untouched, strict=True))
            rates = [x for k in (right, same) for x in (k / n, *stats.proportion_interval(k, n))]
            rows.append([*run, audited, condition, n, *rates])
    return pd.DataFrame(rows, columns=COLUMNS)
