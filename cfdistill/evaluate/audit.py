"""Three audits of a trained student, each of which changes one thing of what it is given (our choice)."""

from collections.abc import Mapping
from itertools import product

import pandas as pd

from cfdistill.evaluate import stats
from cfdistill.evaluate.predict import Answers, Questions, answered
from cfdistill.methods import METHODS
from cfdistill.params import Params
from cfdistill.schema import DIRECT, ELIMINATION, Question, options_text, prompt_text
from cfdistill.student import decode, models
from cfdistill.student.models import Student

CONDITIONS = {  # of every audit; the first one changes nothing
    "input": ("everything", "options alone", "question alone"),
    "strategy": ("right token", "missing", "novel", "swapped"),
    "rationale": ("its own", "truncated", "another question's", "opposite view"),
}
Said = tuple[int, str, bool]  # option, text, whether the text names it
NOVEL = "[Third opinion]"  # a strategy token that no training example holds
COLUMNS = [
    "train_dataset", "method", "student", "seed", "test_split", "audit", "condition", "n", "accuracy",
    "ci_low", "ci_high", "same_answer", "same_low", "same_high", "unparsed_rate",
]  # fmt: skip


def choose_questions(questions: Questions, params: Params) -> list[Question]:
    """Return `params.audit_questions` of the questions, spread evenly over them."""
    count = min(params.audit_questions, len(questions))
    return [questions[i * len(questions) // count] for i in range(count)]


def audit(student: Student, questions: Questions, method: str, params: Params) -> Answers:
    """Return a student's answers under every condition; one that learned only labels has one audit."""
    label = METHODS[method].scoring == "label"
    found = {"input": read_input(student, questions, "" if label else DIRECT, params)}
    if not label:
        found["strategy"] = heed_strategy(student, questions, params)
        texts = [text for _, text, _ in found["strategy"]]
        found["rationale"] = follow_rationale(student, questions, texts, params)
    return [
        answered(question, method, f"{name}/{condition}", *said)
        for name, own in found.items()
        for (condition, question), said in zip(product(CONDITIONS[name], questions), own, strict=True)
    ]


def read_input(student: Student, questions: Questions, token: str, params: Params) -> list[Said]:
    """Let a student name its answer at once: from everything, from the options, from the question."""
    asked = [(question, prompt_text(question, token)) for question in questions]
    prompts = [
        *(prompt for _, prompt in asked),
        *(prompt.removeprefix(f"{q.stem}\n") for q, prompt in asked),
        *(prompt.replace(f"{options_text(q.options)}\n", "") for q, prompt in asked),
    ]
    return _choose(student, questions, prompts, [""] * len(prompts), params)


def heed_strategy(student: Student, questions: Questions, params: Params) -> list[Said]:
    """Let a student write under its own strategy token, none, one it never saw, and the other one."""
    right, novel, swapped = (
        [prompt_text(q, token) for q in questions] for token in (DIRECT, NOVEL, ELIMINATION)
    )
    short, size = [*right, *(p.removesuffix(f"\n{DIRECT}") for p in right), *novel], params.eval_batch_size
    texts = decode.generate(student, short, params.max_new_tokens, size)
    texts += decode.generate(student, swapped, params.max_new_tokens_elimination, size)
    read = decode.read_answers(student, [*questions] * 4, [*short, *swapped], texts, size)
    return [(option, text, parsed) for text, (option, parsed) in zip(texts, read, strict=True)]


def follow_rationale(student: Student, questions: Questions, texts: list[str], params: Params) -> list[Said]:
    """Put a rationale written before into a student's mouth and see what follows (Lanham et al., 2023)."""
    written = [decode.rationale_of(text) for text in texts]
    own, opposite = written[: len(questions)], written[-len(questions) :]
    halves = [" ".join(text.split()[: len(text.split()) // 2]) for text in own]
    others = []
    for i, q in enumerate(questions):  # the next question of another scene, around to the beginning
        following = [*range(i + 1, len(questions)), *range(i)]
        apart = (own[j] for j in following if not q.scene or questions[j].scene != q.scene)
        others.append(next(apart, own[i]))
    prompts = [prompt_text(question, DIRECT) for question in questions] * 4
    return _choose(student, questions, prompts, [*own, *halves, *others, *opposite], params)


def _choose(
    student: Student, questions: Questions, prompts: list[str], said: list[str], params: Params
) -> list[Said]:
    """Let a student choose after each prompt and rationale; questions come round once per condition."""
    everyone = [*questions] * (len(prompts) // len(questions))
    begun = [decode.concluding(text) for text in said]
    chosen = decode.choose(student, prompts, begun, everyone, params.eval_batch_size)
    return [(option, q.options[option], True) for q, option in zip(everyone, chosen, strict=True)]


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
            rows.append([*run, audited, condition, n, *rates, sum(not p.parsed for p in found) / n])
    return pd.DataFrame(rows, columns=COLUMNS)
