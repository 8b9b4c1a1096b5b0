"""Two audits of a trained student, each of which changes one thing of what it is given (our choice)."""

from collections.abc import Mapping
from itertools import product

import pandas as pd

from cfdistill.evaluate import stats
from cfdistill.evaluate.predict import Answers, answered, predict
from cfdistill.methods import METHODS
from cfdistill.params import Params
from cfdistill.schema import DIRECT, Question, options_text, prompt_text
from cfdistill.student import decode, models
from cfdistill.student.decode import Questions
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

    A student that learned only labels has one audit. `rationale` puts one written before into a student's
    mouth and sees what follows (Lanham et al., 2023).
    """
    label = METHODS[method].scoring == "label"
    asked = [(question, prompt_text(question, "" if label else DIRECT)) for question in questions]
    prompts = [prompt for _, prompt in asked]
    options_alone = [prompt.removeprefix(f"{q.stem}\n") for q, prompt in asked]
    question_alone = [prompt.replace(f"{options_text(q.options)}\n", "") for q, prompt in asked]
    audits = {"input": ([*prompts, *options_alone, *question_alone], [""] * 3 * len(prompts))}
    if not label:
        own = {answer.question_id: answer.text for answer in known if answer.scoring == "direct"}
        if not own:
            own = {a.question_id: a.text for a in predict(student, questions, method, "direct", params)}
        audits["rationale"] = (prompts * 3, rationales(questions, [own[q.id] for q in questions]))
    found = []
    for name, (read, said) in audits.items():
        begun = [decode.concluding(text) for text in said]
        best = decode.choose(student, read, begun, [*questions] * 3, params.eval_batch_size)
        found += [
            answered(question, method, f"{name}/{condition}", option, question.options[option], True)
            for (condition, question), option in zip(product(CONDITIONS[name], questions), best, strict=True)
        ]
    return found


def rationales(questions: Questions, texts: list[str]) -> list[str]:
    """Return each question's own rationale, then all truncated, then those of other scenes."""
    own, others = [decode.rationale_of(text) for text in texts], []
    halves = [" ".join(text.split()[: len(text.split()) // 2]) for text in own]
    for i, q in enumerate(questions):  # the next question of another scene, around to the beginning
        following = [*range(i + 1, len(questions)), *range(i)]
        apart = (own[j] for j in following if not q.scene or questions[j].scene != q.scene)
        others.append(next(apart, own[i]))
    return [*own, *halves, *others]


def table(answers: Mapping[str, Answers], params: Params, split: str) -> pd.DataFrame:
    """Return one row per method and condition; `same_answer`: answered as under the audit's first one."""
    rows = []
    for method, own in answers.items():
        run = [params.train_dataset, method, models.label(params), params.seed, split]
        for name in dict.fromkeys(answer.scoring for answer in own):
            audited, condition = name.split("/")
            found = [answer for answer in own if answer.scoring == name]
            untouched = [a for a in own if a.scoring == f"{audited}/{CONDITIONS[audited][0]}"]
            right = [answer.predicted == answer.gold for answer in found]
            same = [a.predicted == b.predicted for a, b in zip(found, untouched, strict=True)]
            scenes = [answer.scene or answer.question_id for answer in found]
            rates = [*stats.share(right, scenes), *stats.share(same, scenes)]
            rows.append([*run, audited, condition, len(found), *rates])
    return pd.DataFrame(rows, columns=COLUMNS)
