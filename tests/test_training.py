import itertools
import platform
import shutil
import subprocess
import sys
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from studies import changed, counterfactual_of, rationales_of

from cfdistill.errors import StageError, TrainingError
from cfdistill.schema import DIRECT, ELIMINATION, Example, Question
from cfdistill.student import decode, lower, models, train
from cfdistill.student.examples import count_steps, example_weight, make_examples
from cfdistill.student.loss import target_loss, token_weights
from cfdistill.student.packing import IGNORED, Pair, by_length, collate, encode, pack, tokenize


def asked(name, split, animal, answer):
    return Question(name, "d", split, f"Where do {animal} sleep?", ("barn", "river"), answer)


QUESTIONS = [asked("q1", "train", "hens", 0), asked("q2", "train", "carp", 1)]
REWRITES = [counterfactual_of(question) for question in QUESTIONS]
RATIONALES = [r for q in [*QUESTIONS, *(c.question for c in REWRITES)] for r in rationales_of(q)]
ENDS = " So the answer is"
VALIDATION = [asked("v1", "validation", "cows", 0), asked("v2", "validation", "frogs", 1)]


def of(method):
    return make_examples(QUESTIONS, REWRITES, RATIONALES, method)


def trained(params, folder, steps, method="ft-cot", held_out=VALIDATION):
    student = models.load(params)
    log, facts = train.train(student, of(method), steps, params, folder, held_out)
    return dict(student.model.named_parameters()), log, facts


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def rows_of_all(params, student):
    return [row for own in train.pack_examples(of("cf-distill"), student, params) for row in own]


KINDS = {  # the views that each method learns, and whether of rewrites, too
    "ft": ("label", False), "multi-view": ("positive negative", False), "cf-only": ("positive", True),
    **dict.fromkeys(("ft-cot", "ft-cot-long"), ("positive", False)),
    **dict.fromkeys(("cf-unfiltered", "cf-random-mask", "cf-distill"), ("positive negative", True)),
}  # fmt: skip


@pytest.mark.parametrize("method", KINDS)
def test_a_method_learns_its_views_of_originals_and_rewrites(method):
    (views, rewrites), examples = KINDS[method], of(method)
    expected = itertools.product(["", "~cf"] if rewrites else [""], ("q1", "q2"), views.split())
    found = [(e.question_id, e.kind, e.counterfactual) for e in examples]
    assert found == [(name + suffix, view, bool(suffix)) for suffix, name, view in expected]
    texts = {(r.question_id, r.view): r.text for r in RATIONALES}
    texts |= {("q1", "label"): "So the answer is barn.", ("q2", "label"): "So the answer is river."}
    ends = {"label": "Answer:", "positive": DIRECT, "negative": ELIMINATION}
    for example in examples:
        assert example.prompt.endswith(f"\n{ends[example.kind]}")
        assert example.target == f" {texts[example.question_id, example.kind]}"


def test_missing_rationales_and_rewrites_are_told_and_steps_count_questions(small_params):
    assert len(make_examples(QUESTIONS, REWRITES, RATIONALES[1:], "cf-distill")) == 7
    with pytest.raises(TrainingError, match="ft-cot: no training examples from 2 questions and 0 rationales"):
        make_examples(QUESTIONS, REWRITES, [], "ft-cot")
    with pytest.raises(TrainingError, match="cf-distill: there are no counterfactuals to train on"):
        make_examples(QUESTIONS, [], RATIONALES, "cf-distill")
    params = changed(small_params, batch_size=2, epochs=2.5)
    assert count_steps(of("cf-distill"), params) == 10  # 4 questions with 2 examples each, 2.5 times
    assert count_steps(of("ft-cot"), params) == 3  # 2 questions with 1 example each


def test_batches_hold_every_question_once_an_epoch_and_only_the_seed_matters():
    lengths = [i % 7 for i in range(50)]
    batches = train.draw_batches(lengths, 4, 26, seed=1)
    for epoch in (batches[:13], batches[13:]):
        assert sorted(i for batch in epoch for i in batch) == list(range(50))
    again, other = (train.draw_batches(lengths, 4, 13, seed) for seed in (1, 2))
    assert batches[13:] != again == batches[:13] != other
    spread = [np.ptp([lengths[i] for i in batch]) for batch in batches]
    assert np.mean(spread) < 2.5  # of 6; similar lengths share a batch
    assert by_length(["aaa", "b", "cc", "dddd", "e"], 2) == [[1, 4], [2, 0], [3]]


def test_weights_weigh_examples_in_the_loss(small_params):
    student, examples = models.load(small_params), of("cf-distill")
    params = changed(small_params, counterfactual_weight=3.0, negative_view_weight=0.5)
    weights = [example_weight(e, params) for e in examples]
    assert weights == [1.0, 0.5, 1.0, 0.5, 3.0, 1.5, 3.0, 1.5]
    packed = [train.pack_examples([example], student, params)[0] for example in examples]
    single = [target_loss(student.model, collate(rows)).item() for rows in packed]
    loss = target_loss(student.model, collate(rows_of_all(params, student))).item()
    assert loss == pytest.approx(np.average(single, weights=weights), rel=1e-5)


def test_lower_states_change_neither_loss_nor_gradients(small_params, tmp_path):
    student = models.load(small_params)
    rows = rows_of_all(small_params, student)
    plain = target_loss(student.model, collate(rows))
    plain.backward()
    expected = {name: p.grad for name, p in student.model.named_parameters()}
    student.model.zero_grad()  # which lets go of them
    frozen, upper = lower.split_layers(student.model, 2)
    states = lower.lower_states(frozen, rows, 3, tmp_path)
    kept = target_loss(upper, collate(rows, [states[row] for row in rows]))
    kept.backward()
    torch.testing.assert_close(kept, plain)
    found = {name: p.grad for name, p in student.model.named_parameters() if p.grad is not None}
    assert set(found) == {n for n in expected if n.startswith(("model.layers.2.", "model.norm"))}
    torch.testing.assert_close(found, {name: expected[name] for name in found}, rtol=1e-4, atol=1e-6)
    with pytest.raises(TrainingError, match="frozen_layers=3, but the student has 3 layers"):
        lower.split_layers(student.model, 3)


@pytest.mark.parametrize("frozen", [0, 2])
def test_loss_falls_and_frozen_weights_stay(frozen, small_params, tmp_path):
    params = changed(small_params, frozen_layers=frozen, learning_rate=0.02, batch_size=2)
    before = dict(models.load(params).model.named_parameters())
    after, log, facts = trained(params, tmp_path, 40, "cf-distill", [])
    assert ([row["step"] for row in log], log[-1]["epoch"]) == ([*range(1, 41)], 10)
    assert log[-1]["loss"] < log[0]["loss"] - 1
    assert (facts["examples"], facts["sequences"], facts["precision"]) == (8, 4, "fp32")
    assert 0.1 < facts["peak_memory_gib"] < 8
    frozen_names = ("model.embed", "model.layers.0.", "model.layers.1.") if frozen else ()
    moved = {name for name in before if not torch.equal(after[name], before[name])}
    assert moved == {name for name in before if not name.startswith(frozen_names)}
    after, [row], facts = trained(params, tmp_path / "one", 1)  # a single step trains and logs, too
    assert not equal(before, after)
    assert (row["step"], facts["steps"], facts["kept_step"], row["val_loss"] > 0) == (1, 1, 1, True)


def test_precision_is_that_of_the_parameters(small_params, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "_has_bf16", lambda: True)
    kinds = ("fp32", "bf16", "auto")
    made = [trained(changed(small_params, precision=kind), tmp_path / kind, 3) for kind in kinds]
    assert [facts["precision"] for _, _, facts in made] == ["fp32", "bf16", "bf16"]
    assert [equal(made[1][0], weights) for weights, _, _ in made] == [False, True, True]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries cannot be told")
def test_freed_memory_is_kept_for_the_next_step():
    script = """
import resource, torch
from cfdistill.student.train import keep_memory

pages = [0]
for step in range(15):
    if step == 5: keep_memory()
    torch.ones(25_000_000)
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
assert 2 * (pages[15] - pages[10]) < pages[5] - pages[1], pages  # once the heap has grown
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_faults_are_told(small_params, tmp_path, monkeypatch):
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+; lower learning_rate"):
        trained(changed(small_params, learning_rate=1e30), tmp_path, 6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Mock(free=99_999))
    needs = r"needs 0\.00\d+ GB, but its disk has 0\.0001 GB free"
    with pytest.raises(StageError, match=needs):
        trained(small_params, tmp_path, 6)
    with pytest.raises(StageError, match=needs):
        models.load(small_params).save(tmp_path / "saved")
    assert not any((tmp_path / "saved").iterdir())


@pytest.mark.parametrize(("frozen", "checkpoint"), [(0, "last"), (1, "last"), (1, "best")])
def test_killed_training_ends_as_if_it_had_not_been(frozen, checkpoint, small_params, tmp_path, monkeypatch):
    changes = {"frozen_layers": frozen, "learning_rate": 0.01, "validations": 5, "checkpoint": checkpoint}
    params, log_step, killed, steps = changed(small_params, **changes), train.StudentTrainer.log, [6], []
    expected, whole, facts = trained(params, tmp_path / "whole", 9)

    def stop_at_six(self, logs, *rest):
        log_step(self, logs, *rest)
        steps.extend([self.state.global_step] if "loss" in logs else [])
        if self.state.global_step in killed:
            raise KeyboardInterrupt

    monkeypatch.setattr(train.StudentTrainer, "log", stop_at_six)
    folder = tmp_path / "resumed"
    with pytest.raises(KeyboardInterrupt):
        trained(params, folder, 9)
    assert max(path.name for path in folder.iterdir()) == "checkpoint-4"
    half = shutil.copytree(folder / "checkpoint-4", folder / "checkpoint-5")  # as a crash may leave one
    (half / "trainer_state.json").unlink()
    killed.clear()
    found, log, resumed = trained(params, folder, 9)
    assert steps == [*range(1, 7), *range(5, 10)]
    for row in [*log, *whole]:
        del row["seconds"], row["tokens_per_s"]
    assert (log, resumed["kept_step"], equal(expected, found)) == (whole, facts["kept_step"], True)
    train.forget_checkpoints(folder)
    assert not folder.exists()


def test_validation_now_and_then_changes_nothing(small_params, tmp_path):
    params = changed(small_params, learning_rate=0.01, validations=4)
    student = models.load(params)
    log, _ = train.train(student, of("ft-cot"), 9, params, tmp_path / "with", VALIDATION)
    validated = {row["step"]: row for row in log if "val_loss" in row}
    assert list(validated) == [3, 6, 9]
    again = train.measure(student, VALIDATION, "positive", params)
    assert validated[9]["val_accuracy"] == again["accuracy"]
    assert validated[9]["val_loss"] == pytest.approx(again["loss"], rel=1e-4)
    without, _, _ = trained(changed(params, validations=0), tmp_path / "without", 9)
    assert equal(dict(student.model.named_parameters()), without)


@pytest.mark.parametrize(("kind", "strategy", "said"), [("positive", DIRECT, ""), ("label", "Answer:", ENDS)])
def test_validation_is_by_the_likelihood_of_options(kind, strategy, said, small_params, monkeypatch):
    question = Question("v", "d", "validation", "Where?", ("barn", "river", "Barn "), 2)  # either is right
    asked = Mock(return_value=np.array([[-0.1, -3.0, -0.2, -np.inf]]))
    monkeypatch.setattr(train, "option_scores", asked)
    found = train.measure(models.load(small_params), [question], kind, small_params)
    prompts = [f"Where?\nOptions: barn; river; Barn \n{strategy}"]
    assert asked.call_args.args[1:] == (prompts, [question.options], small_params.eval_batch_size, [said])
    likelihoods = np.exp([-0.4, -15.0, -1.0])
    assert found == {"accuracy": 1.0, "loss": pytest.approx(-np.log(likelihoods[2] / likelihoods.sum()))}


def test_the_student_that_validates_best_is_kept(small_params, tmp_path, monkeypatch):
    changes = {"checkpoint": "best", "validations": 5, "learning_rate": 0.01, "frozen_layers": 1}
    params = changed(small_params, **changes)
    student, losses, seen = models.load(params), iter([0.8, 0.2, 0.5, 0.2, 0.9]), []

    def measure(*_):
        seen.append({name: p.detach().clone() for name, p in student.model.named_parameters()})
        return {"accuracy": 1.0, "loss": next(losses)}

    monkeypatch.setattr(train, "measure", measure)
    log, facts = train.train(student, of("ft-cot"), 20, params, tmp_path, VALIDATION)
    assert [row["step"] for row in log if "val_loss" in row] == list(range(4, 21, 4))
    assert (len(log), facts["steps"], facts["kept_step"]) == (20, 20, 8)
    kept = dict(student.model.named_parameters())
    assert (equal(kept, seen[1]), equal(kept, seen[2])) == (True, False)


def test_lower_states_of_the_same_sequences_are_computed_once(small_params, tmp_path, monkeypatch):
    student = models.load(small_params)
    frozen, _ = lower.split_layers(student.model, 2)
    passed = Mock(wraps=frozen.base_model.forward)
    monkeypatch.setattr(frozen.base_model, "forward", passed)

    def state(batch_size=3):
        rows = rows_of_all(small_params, student)
        return lower.lower_states(frozen, rows, batch_size, tmp_path)[rows[0]].clone()

    first, calls = state(), [passed.call_count]
    for change in ("none", "damaged", "batches", "weights"):
        if change == "damaged":
            (file,) = (path for path in tmp_path.iterdir() if not path.suffix)
            file.write_bytes(file.read_bytes()[:-1])  # as a power cut may leave it
        if change == "weights":
            with torch.no_grad():
                next(frozen.parameters()).add_(1)
        again = state(batch_size=4 if change in ("batches", "weights") else 3)
        assert torch.allclose(again, first, atol=1e-4) == (change != "weights")
        calls.append(passed.call_count)
    assert np.diff(calls).tolist() == [0, 2, 1, 1]


def test_pack_holds_the_common_beginning_once_and_splits_an_examples_share_among_its_target_tokens():
    packed = pack([Pair([1, 2, 3], [4]), Pair([1, 2, 9, 8], [5, 6])])
    assert packed.input_ids == [1, 2, 3, 4, 9, 8, 5, 6]
    assert packed.position_ids == [0, 1, 2, 3, 2, 3, 4, 5]
    assert packed.branches == [0, 0, 1, 1, 2, 2, 2, 2]
    assert packed.labels == [IGNORED, IGNORED, IGNORED, 4, IGNORED, IGNORED, 5, 6]
    assert pack([Pair([1, 2], [3]), Pair([1, 2], [4])]).input_ids == [1, 2, 3, 2, 4]  # the last one predicts
    rows = [pack([Pair([1, 2], [3], 3.0), Pair([1, 2], [4, 5, 6], 0.5)]), pack([Pair([1, 2], [7, 8])])]
    assert torch.equal(token_weights(collate(rows)), torch.tensor([3.0, *[0.5 / 3] * 3, 0.5, 0.5]) / 4.5)


def test_targets_end_with_the_end_token_and_are_all_supervised(small_params):
    tokenizer = models.load(small_params).tokenizer
    for example in of("cf-distill"):
        pair, target = encode(example, tokenizer), example.target + tokenizer.eos_token
        packed = pack([pair])
        assert tokenizer.decode(packed.input_ids) == example.prompt + target
        assert tokenizer.decode([label for label in packed.labels if label != IGNORED]) == target
        # prompt and target tokenize alike together and apart
        assert pair.prompt + pair.target[:-1] == tokenize(example.prompt + example.target, tokenizer)


def test_long_examples_and_prompts_are_an_error_with_counts(small_params):
    student = models.load(small_params)
    examples = [Example(f"q{n}", "label", "Answer:", " So" * n) for n in (5, 6, 9)]
    lengths = [len(p.prompt) + len(p.target) for p in (encode(e, student.tokenizer) for e in examples)]
    check = partial(train.pack_examples, examples, student)
    check(changed(small_params, max_length=lengths[2]))
    with pytest.raises(TrainingError, match=rf"2 of 3 .*={lengths[0]} .* raise max_length to {lengths[2]} "):
        check(changed(small_params, max_length=lengths[0]))
    student.model.config.max_position_embeddings = lengths[1]
    with pytest.raises(TrainingError, match=f"has {lengths[2]} tokens, and the student takes {lengths[1]};"):
        check(changed(small_params, max_length=lengths[2]))
    with pytest.raises(TrainingError, match=rf"answer may have 2, but the student takes {lengths[1]};"):
        decode.generate(student, [" So" * lengths[1]], 2, 1)
