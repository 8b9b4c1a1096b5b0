import csv
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from studies import counterfactual_of, make_upstream, rationales_of

from cfdistill import counterfactual, data, rationale, runs, students, training
from cfdistill.answering import validate
from cfdistill.encoding import collate, encode, target_loss
from cfdistill.errors import StageError, TrainingError
from cfdistill.evaluation import scorings
from cfdistill.methods import METHODS
from cfdistill.params import Params
from cfdistill.schema import DIRECT, ELIMINATION, Question, prompt_text
from cfdistill.trainer import StepReport, draw_batches, lower_states, split_layers

QUESTIONS = [
    Question("q1", "d", "train", "Where do hens sleep?", ("barn", "river"), 0),
    Question("q2", "d", "train", "Where do carp sleep?", ("barn", "river"), 1),
]
COUNTERFACTUALS = [counterfactual_of(question) for question in QUESTIONS]
RATIONALES = [r for q in [*QUESTIONS, *(c.question for c in COUNTERFACTUALS)] for r in rationales_of(q)]


def read_log(stage: runs.Stage) -> list[dict[str, str]]:
    with (stage.path / "log.csv").open() as file:
        return list(csv.DictReader(file))


def weights(stage: runs.Stage) -> dict[str, torch.Tensor]:
    return dict(students.load_folder("tiny-random", stage.path / "model").model.named_parameters())


def with_changes(params: Params, **changes: Any) -> Params:
    return params.model_copy(update=changes)


def test_ft_learns_the_answer_sentence_alone() -> None:
    examples = training.make_examples(QUESTIONS, COUNTERFACTUALS, RATIONALES, "ft")
    assert [e.question_id for e in examples] == ["q1", "q2"]
    assert all(e.prompt.endswith("Answer:") and e.target.startswith(" So the answer is") for e in examples)


@pytest.mark.parametrize("method", ["ft-cot", "ft-cot-long"])
def test_ft_cot_learns_the_positive_view_of_originals(method: str) -> None:
    examples = training.make_examples(QUESTIONS, COUNTERFACTUALS, RATIONALES, method)
    assert [(e.question_id, e.kind, e.counterfactual) for e in examples] == [
        ("q1", "positive", False),
        ("q2", "positive", False),
    ]
    assert examples[0].prompt.endswith(DIRECT)
    assert examples[0].target == f" {RATIONALES[0].text}"


def test_cf_distill_learns_both_views_of_originals_and_counterfactuals() -> None:
    examples = training.make_examples(QUESTIONS, COUNTERFACTUALS, RATIONALES, "cf-distill")
    assert [(e.question_id, e.kind) for e in examples] == [
        (f"{q}{suffix}", kind)
        for suffix in ("", "~cf")
        for q in ("q1", "q2")
        for kind in ("positive", "negative")
    ]
    assert examples[1].prompt.endswith(ELIMINATION)
    assert [e.counterfactual for e in examples] == [False] * 4 + [True] * 4


@pytest.mark.parametrize(
    ("method", "kinds", "counterfactuals"),
    [
        ("multi-view", {"positive", "negative"}, 0),
        ("cf-only", {"positive"}, 2),
        ("cf-unfiltered", {"positive", "negative"}, 4),
        ("cf-random-mask", {"positive", "negative"}, 4),
    ],
)
def test_ablations_leave_out_a_view_or_the_counterfactuals(
    method: str, kinds: set[str], counterfactuals: int
) -> None:
    examples = training.make_examples(QUESTIONS, COUNTERFACTUALS, RATIONALES, method)
    assert {e.kind for e in examples} == kinds
    assert sum(e.counterfactual for e in examples) == counterfactuals
    assert sum(not e.counterfactual for e in examples) == 2 * len(kinds)


def test_every_method_is_known_where_methods_are_drawn_and_asked(small_params: Params) -> None:
    params = Params.build(small_params.model_dump() | {"methods": list(METHODS)})
    assert [bool(scorings(method, params)) for method in params.methods] == [True] * len(METHODS)
    ways = [(variant.vote_threshold, variant.mask_source) for variant in params.variants()]
    assert ways == [(4, "teacher"), (0, "teacher"), (4, "random")]


def test_weights_weigh_examples_in_the_loss(small_params: Params) -> None:
    student = students.load("tiny-random", small_params)
    examples = training.make_examples(QUESTIONS, COUNTERFACTUALS, RATIONALES, "cf-distill")
    params = with_changes(small_params, counterfactual_weight=3.0, negative_view_weight=0.5)
    weights = [training.weight(e, params) for e in examples]
    assert weights == [1.0, 0.5, 1.0, 0.5, 3.0, 1.5, 3.0, 1.5]
    single = [
        target_loss(student.model, collate(training.pack_examples([e], student, params)[0])).item()
        for e in examples
    ]
    rows = [row for own in training.pack_examples(examples, student, params) for row in own]
    packed = target_loss(student.model, collate(rows))
    expected = sum(w * loss for w, loss in zip(weights, single, strict=True)) / sum(weights)
    assert packed.item() == pytest.approx(expected, rel=1e-5)


def test_methods_with_other_rewrites_read_their_own_stages(small_params: Params) -> None:
    params = with_changes(
        small_params,
        methods=["cf-distill", "cf-unfiltered", "cf-random-mask"],
        train_scenes=20,
        train_questions=24,
        vote_threshold=3,
        teacher_noise=0.3,
    )
    data.build(params.train_dataset, params)
    for variant in params.variants():
        counterfactual.build(variant)
        rationale.build(variant)
    rewrites = {method: counterfactual.read(params.for_method(method)) for method in params.methods}
    kept, unfiltered, by_chance = rewrites.values()
    assert len(kept) < len(unfiltered)
    assert {c.question.stem for c in kept} <= {c.question.stem for c in unfiltered}
    masks = {c.original_id: c.masked_stem for c in unfiltered}
    assert all(c.masked_stem != masks.get(c.original_id) for c in by_chance)
    for method, own in rewrites.items():
        learned = {e.question_id for e in training.read_examples(method, params) if e.counterfactual}
        assert learned
        assert learned <= {c.question.id for c in own}
    steps = {training.planned_steps(method, params) for method in params.methods}
    assert steps == {training.count_steps(training.read_examples("cf-distill", params), params)}


def test_dropped_rationales_leave_their_example_out() -> None:
    assert len(training.make_examples(QUESTIONS, COUNTERFACTUALS, RATIONALES[1:], "cf-distill")) == 7
    with pytest.raises(TrainingError, match="ft-cot: no training examples from 2 questions and 0 rationales"):
        training.make_examples(QUESTIONS, COUNTERFACTUALS, [], "ft-cot")


def test_steps_count_questions_and_the_batch_counts_examples(small_params: Params) -> None:
    both = training.make_examples(QUESTIONS, COUNTERFACTUALS, RATIONALES, "cf-distill")
    positive = training.make_examples(QUESTIONS, COUNTERFACTUALS, RATIONALES, "ft-cot")
    params = with_changes(small_params, batch_size=2, epochs=2.5)
    assert training.count_steps(both, params) == 10  # 4 questions with 2 examples each, 2.5 times
    assert training.count_steps(positive, params) == 3  # 2 questions with 1 example each


def test_batches_hold_every_example_once_an_epoch_and_only_the_seed_matters() -> None:
    lengths = [i % 7 for i in range(50)]
    batches = draw_batches(lengths, 4, 26, seed=1)
    for epoch in (batches[:13], batches[13:]):
        assert sorted(i for batch in epoch for i in batch) == list(range(50))
    assert batches[:13] != batches[13:]
    assert draw_batches(lengths, 4, 20, seed=1) == batches[:20]
    assert draw_batches(lengths, 4, 26, seed=2) != batches
    spread = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches]
    assert sum(spread) / len(spread) < 2.5  # of 6; similar lengths share a batch


def test_kept_lower_states_change_neither_loss_nor_gradients(small_params: Params) -> None:
    student = students.load("tiny-random", small_params)
    examples = training.make_examples(QUESTIONS, COUNTERFACTUALS, RATIONALES, "cf-distill")
    rows = [row for own in training.pack_examples(examples, student, small_params) for row in own]
    plain = target_loss(student.model, collate(rows))
    plain.backward()
    expected = {name: p.grad.clone() for name, p in student.model.named_parameters()}
    student.model.zero_grad()
    lower, upper = split_layers(student.model, 2)
    kept = target_loss(upper, collate(rows, lower_states(lower, rows, batch_size=3)))
    kept.backward()
    torch.testing.assert_close(kept, plain)
    trained = {name for name, p in student.model.named_parameters() if p.grad is not None}
    assert trained == {n for n in expected if n.startswith(("model.layers.2.", "model.norm"))}
    for name, p in student.model.named_parameters():
        if name in trained:
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_too_many_frozen_layers_are_an_error(small_params: Params) -> None:
    student = students.load("tiny-random", small_params)
    with pytest.raises(TrainingError, match="frozen_layers=3, but the student has 3 layers"):
        split_layers(student.model, 3)


@pytest.mark.parametrize("frozen", [0, 2])
def test_loss_falls_and_frozen_weights_stay(frozen: int, small_params: Params, tmp_path: Path) -> None:
    params = with_changes(small_params, frozen_layers=frozen, learning_rate=0.02, batch_size=2)
    student = students.load("tiny-random", params)
    before = {name: p.detach().clone() for name, p in student.model.named_parameters()}
    examples = training.make_examples(QUESTIONS, COUNTERFACTUALS, RATIONALES, "cf-distill")
    log, notes = training.train(student, examples, 40, params, tmp_path / "checkpoints")
    assert [row["step"] for row in log] == list(range(1, 41))
    assert log[-1]["epoch"] == 10
    assert log[-1]["loss"] < log[0]["loss"] - 1
    assert notes["examples"] == 8
    assert notes["sequences"] == 4
    changed = {n for n, p in student.model.named_parameters() if not torch.equal(p, before[n])}
    frozen_names = ("model.embed", "model.layers.0.", "model.layers.1.") if frozen else ()
    assert changed == {name for name in before if not name.startswith(frozen_names)}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries cannot be told")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    script = """
import resource, torch
from cfdistill.trainer import keep_memory

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(25_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = new_pages()
keep_memory()
new_pages()  # what the heap has not held yet is new once more
print(first, new_pages())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 2 * after < before


def test_accumulated_gradients_are_those_of_the_whole_batch(small_params: Params, tmp_path: Path) -> None:
    examples = training.make_examples(QUESTIONS, COUNTERFACTUALS, RATIONALES, "cf-distill")[:-2]
    logs, trained = [], []
    for parts in (1, 2, 3):
        changes = {
            "accumulation_steps": parts,
            "batch_size": 4,
            "learning_rate": 0.01,
            "negative_view_weight": 0.5,
        }
        params = with_changes(small_params, **changes)
        student = students.load("tiny-random", params)
        log, _ = training.train(student, examples, 6, params, tmp_path / str(parts))
        logs.append([row["loss"] for row in log])
        trained.append(dict(student.model.named_parameters()))
    for log, weights in zip(logs[1:], trained[1:], strict=True):
        assert log == pytest.approx(logs[0], rel=1e-4)
        for name, expected in trained[0].items():
            torch.testing.assert_close(weights[name], expected, rtol=1e-3, atol=1e-4)


def test_exploding_loss_is_an_error(small_params: Params, tmp_path: Path) -> None:
    params = with_changes(small_params, learning_rate=1e30)
    examples = training.make_examples(QUESTIONS, COUNTERFACTUALS, RATIONALES, "ft")
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+; lower learning_rate"):
        training.train(students.load("tiny-random", params), examples, 6, params, tmp_path)


def test_full_disk_is_told_before_training(small_params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    make_upstream(small_params)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2_000_000, 0, 2_000_000))
    with pytest.raises(StageError, match=r"needs 0\.00\d+ GB, but its disk has 0\.002 GB free"):
        training.build("ft", small_params)
    assert not runs.stage("training", small_params, method="ft").is_complete()


def test_build_records_what_it_did_and_is_reused(
    small_params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_upstream(small_params)
    made = training.build("cf-distill", small_params)
    manifest = made.manifest()
    files = {p.name for p in made.path.iterdir()}
    assert files == {"examples.jsonl", "log.csv", "manifest.json", "model"}
    assert manifest["drops"] == {"no rationale": 1}
    assert manifest["outputs"]["examples.jsonl"]["rows"] == manifest["notes"]["examples"] == 35
    assert manifest["outputs"]["log.csv"]["rows"] == manifest["notes"]["steps"] == 9
    assert len(manifest["inputs"]) == 3
    assert "step 9/9 · loss" in capsys.readouterr().out
    monkeypatch.setattr(students, "load", None)
    assert training.build("cf-distill", small_params) == made


def test_ft_cot_long_takes_as_many_steps_as_cf_distill(small_params: Params) -> None:
    make_upstream(small_params)
    notes = training.build("ft-cot-long", small_params).manifest()["notes"]
    assert notes["steps"] == 9
    assert notes["examples"] == 12


def test_missing_upstream_is_named(small_params: Params) -> None:
    with pytest.raises(StageError, match="stage data is missing"):
        training.build("ft", small_params)
    data.build(small_params.train_dataset, small_params)
    with pytest.raises(StageError, match="stage counterfactuals is missing"):
        training.build("ft", small_params)


@pytest.mark.parametrize(("frozen", "checkpoint"), [(0, "last"), (1, "last"), (1, "best")])
def test_killed_training_ends_as_if_it_had_not_been(
    frozen: int, checkpoint: str, small_params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"epochs": 3.0, "frozen_layers": frozen, "learning_rate": 0.01, "validations": 5}
    params = with_changes(small_params, **changes, checkpoint=checkpoint)
    make_upstream(params)
    whole = training.build("ft-cot", params)
    resumed = with_changes(params, run_root=str(tmp_path / "again"))
    make_upstream(resumed)

    report = StepReport.on_log

    def stop_at_six(self: StepReport, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        report(self, args, state, control, **kwargs)
        if state.global_step == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(StepReport, "on_log", stop_at_six)
    with pytest.raises(KeyboardInterrupt):
        training.build("ft-cot", resumed)
    stage = runs.stage("training", resumed, method="ft-cot")
    assert not stage.is_complete()
    checkpoints = Path(f"{stage.path}.partial") / "checkpoints"
    kept = max(checkpoints.iterdir())
    assert kept.name == "checkpoint-4"
    shutil.copytree(kept, checkpoints / "checkpoint-5")  # one that a crash left half-written
    (checkpoints / "checkpoint-5" / "trainer_state.json").unlink()

    steps: list[int] = []

    def note_step(self: StepReport, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        report(self, args, state, control, **kwargs)
        steps.extend([state.global_step] if "loss" in kwargs["logs"] else [])

    monkeypatch.setattr(StepReport, "on_log", note_step)
    training.build("ft-cot", resumed)
    assert steps == [5, 6, 7, 8, 9]
    columns = ("step", "epoch", "loss", "learning_rate", "val_accuracy", "val_loss")
    logs = [[[row[c] for c in columns] for row in read_log(made)] for made in (whole, stage)]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 9
    expected, found = weights(whole), weights(stage)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    kept_steps = {made.manifest()["notes"]["kept_step"] for made in (whole, stage)}
    assert len(kept_steps) == 1


def test_validation_asks_held_out_questions_now_and_then(small_params: Params) -> None:
    params = with_changes(small_params, epochs=3.0, learning_rate=0.01, validations=4)
    make_upstream(params)
    made = training.build("ft-cot", params)
    rows = {int(row["step"]): row for row in read_log(made) if row["val_loss"]}
    assert list(rows) == [3, 6, 9]
    questions = data.questions(params.train_dataset, "validation", params)
    trained = {e.question_id for e in training.read_examples("ft-cot", params)}
    assert not trained & {question.id for question in questions}
    student = training.load_trained("ft-cot", params)
    prompts = [prompt_text(question, DIRECT) for question in questions]
    longest = max(len(encode(e, student.tokenizer).target) for e in training.read_examples("ft-cot", params))
    again = validate(student, questions, prompts, longest, batch_size=2)
    assert float(rows[9]["val_accuracy"]) == again["accuracy"]
    assert float(rows[9]["val_loss"]) == pytest.approx(again["loss"], rel=1e-4)


def test_validation_changes_nothing_in_the_student(small_params: Params) -> None:
    make_upstream(small_params)
    with_it, without = (
        weights(training.build("ft", with_changes(small_params, validations=n))) for n in (3, 0)
    )
    assert all(torch.equal(with_it[name], without[name]) for name in without)


@pytest.mark.parametrize(("patience", "steps", "kept"), [(0, 20, 8), (1, 12, 8)])
def test_the_best_student_is_kept_and_patience_ends(
    patience: int,
    steps: int,
    kept: int,
    small_params: Params,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = {"checkpoint": "best", "validations": 5, "patience": patience, "learning_rate": 0.01}
    params = with_changes(small_params, **changes, frozen_layers=1)
    student = students.load("tiny-random", params)
    accuracies, seen = iter([0.2, 0.8, 0.5, 0.8, 0.1]), []

    def measure(*_: Any) -> dict[str, float]:
        seen.append({name: p.detach().clone() for name, p in student.model.named_parameters()})
        return {"accuracy": next(accuracies), "loss": 1.0}

    monkeypatch.setattr(training, "validate", measure)
    examples = training.make_examples(QUESTIONS, COUNTERFACTUALS, RATIONALES, "ft-cot")
    log, notes = training.train(student, examples, 20, params, tmp_path / "checkpoints", QUESTIONS)
    assert [row["step"] for row in log if "val_loss" in row] == list(range(4, steps + 1, 4))
    assert (len(log), notes["steps"], notes["kept_step"]) == (steps, steps, kept)
    assert all(torch.equal(p, seen[1][name]) for name, p in student.model.named_parameters())
    assert any(not torch.equal(p, seen[2][name]) for name, p in student.model.named_parameters())


def test_two_processes_train_the_student_of_one(small_params: Params, tmp_path: Path) -> None:
    changes = {"batch_size": 4, "accumulation_steps": 2, "learning_rate": 0.01, "frozen_layers": 1}
    alone = with_changes(small_params, **changes, checkpoint="best", methods=["ft-cot", "cf-distill"])
    both = with_changes(alone, run_root=str(tmp_path / "both"))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    for params in (alone, both):
        make_upstream(params)
    profile = tmp_path / "both.yaml"
    profile.write_text(json.dumps(both.model_dump() | {"accumulation_steps": 1}))
    torchrun = subprocess.run(
        [*command, "-m", "cfdistill", "train", str(profile)], capture_output=True, text=True, check=False
    )
    assert torchrun.returncode == 0, torchrun.stderr[-3000:]
    for method in alone.methods:
        one = training.build(method, alone)
        two = runs.stage("training", with_changes(both, accumulation_steps=1), method=method)
        assert f"{two.path}\n" in torchrun.stdout
        losses, others = ([float(row["loss"]) for row in read_log(made)] for made in (one, two))
        assert others == pytest.approx(losses, rel=1e-4)
        expected, found = weights(one), weights(two)
        for name, values in expected.items():
            torch.testing.assert_close(found[name], values, rtol=1e-3, atol=1e-4)


def test_tensorboard_gets_losses_and_validations(small_params: Params) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    params = with_changes(small_params, tensorboard=True)
    make_upstream(params)
    made = training.build("ft", params)
    events = EventAccumulator(str(Path(params.run_root) / "tensorboard" / made.path.name)).Reload()
    losses = [float(row["loss"]) for row in read_log(made)]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses, rel=1e-6)
    accuracies = [float(row["val_accuracy"]) for row in read_log(made) if row["val_accuracy"]]
    assert [event.value for event in events.Scalars("eval/accuracy")] == pytest.approx(accuracies)


def test_tensorboard_that_is_missing_is_one_sentence(
    small_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    make_upstream(small_params)
    with pytest.raises(TrainingError, match=r"needs pip install 'cfdistill\[tensorboard\]'"):
        training.build("ft", with_changes(small_params, tensorboard=True))
