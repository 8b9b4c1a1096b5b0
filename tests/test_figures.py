"""Figures from simulated tables: what is drawn, what is saved, and that saving twice gives the same bytes."""

import json
import random
import subprocess
import sys
import warnings

import pandas as pd
import pytest

from cfdistill import answer_figures, figures, metrics, process_figures
from cfdistill.errors import DataError
from cfdistill.schema import Prediction, Question

DATASETS = ("weasel-commonsense", "weasel-qualitative", "weasel-science")
METHODS = ("ft", "ft-cot", "cf-distill")


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def study(train="weasel-commonsense", student="smollm2-135m", seed=0):
    """Metrics of random answers on a training set's own splits and on the other sets."""
    rng = random.Random(f"{train}/{student}/{seed}")
    cells = [(train, split) for split in ("id", "shift", "new")]
    cells += [(dataset, "new") for dataset in DATASETS if dataset != train]
    answers = [
        Prediction(
            f"q{i}", dataset, split, "", "", method, metrics.main_scoring(method), 0, 1, rng.randrange(4), ""
        )
        for dataset, split in cells
        for method in METHODS
        for i in range(20)
    ]
    return metrics.metrics_table(metrics.predictions_table(answers, train, student, seed))


def texts(fig):
    """All words of a figure, after a drawing that must not warn."""
    fig.canvas.draw()
    found = [t.get_text() for t in fig.findobj(lambda artist: hasattr(artist, "get_text")) if t.get_visible()]
    return "\n".join(found)


def test_every_method_has_its_own_color_and_marker():
    assert set(figures.METHOD_STYLES) == set(metrics.METHOD_ORDER)
    for looks in zip(*figures.METHOD_STYLES.values(), strict=True):
        assert len(set(looks)) == len(looks)


def test_headline_draws_a_bar_per_method_and_split_at_its_accuracy():
    table = study()
    fig = figures.fig_headline(table, chance=0.25)
    right, lured = fig.axes
    own = table[(table.method == "ft-cot") & (table.test_dataset == "weasel-commonsense")]
    assert [bar.get_height() for bar in right.containers[2]] == pytest.approx(list(100 * own.accuracy))
    assert len(right.patches) == len(lured.patches) == 9
    words = texts(fig)
    assert all(word in words for word in (*METHODS, "id", "shift", "new", "guessing"))
    assert fig.get_size_inches()[0] == figures.PAGE


def test_headline_averages_seeds_and_shows_one_student():
    two = pd.concat([study(seed=0), study(seed=1)])
    assert len(figures.fig_headline(two).axes[0].patches) == 9
    with pytest.raises(DataError, match="one student, got a, b"):
        figures.fig_headline(pd.concat([study(student="a"), study(student="b")]))
    with pytest.raises(DataError, match="nothing to draw"):
        figures.fig_headline(study()[:0])


@pytest.mark.parametrize("trained_on", [DATASETS[:1], DATASETS[:2], DATASETS])
def test_fig5_has_a_panel_per_training_set(trained_on):
    fig = figures.fig5_ood(pd.concat([study(name) for name in trained_on]), {"weasel-science": 0.25})
    panels = [ax for ax in fig.axes if ax.get_visible()]
    assert [ax.get_title() for ax in panels] == [f"trained on {figures.short_name(n)}" for n in trained_on]
    assert all(len(ax.patches) == 2 * 3 for ax in panels)  # two other sets, three methods
    assert "guessing" in texts(fig)


def test_fig5_matrix_writes_every_cell_and_stars_what_differs():
    cells = [("ft-cot", "weasel-a", 25.0, False), ("ft-cot", "weasel-b", 30.0, False),
             ("cf-distill", "weasel-a", 75.0, False), ("cf-distill", "weasel-b", 30.0, False),
             ("difference", "weasel-a", 50.0, True), ("difference", "weasel-b", 0.0, False)]  # fmt: skip
    table = pd.DataFrame(cells, columns=["panel", "test_dataset", "value", "differs"])
    fig = figures.fig5_matrix(table.assign(train_dataset="weasel-a"))
    assert [[t.get_text() for t in ax.texts] for ax in fig.axes] == [
        ["25", "30"],
        ["75", "30"],
        ["+50*", "+0"],
    ]
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["a"]
    texts(fig)


def test_fig6_says_when_there_is_one_student_and_keeps_reported_numbers_apart():
    one = figures.fig6_architectures(study())
    assert "one student only" in texts(one)
    ours, reported = one.axes
    assert "40.42" in "".join(t.get_text() for t in reported.texts)
    assert not ours.texts
    many = figures.fig6_architectures(pd.concat([study(student=s) for s in ("gpt2", "opt-125m")]))
    assert "one student only" not in texts(many)
    assert [t.get_text() for t in many.axes[0].get_xticklabels()] == ["gpt2", "opt-125m"]
    with pytest.raises(DataError, match="split 'test'"):
        figures.fig6_architectures(study(), "test")


def test_figures_of_a_benchmark_without_testbed_splits():
    table = study()
    table = table[(table.test_dataset == "weasel-commonsense") & (table.test_split == "new")]
    table = table.assign(train_dataset="csqa", test_dataset="csqa", test_split="test", lure_rate=float("nan"))
    assert len(figures.fig_headline(table).axes) == 1
    assert "csqa, split test" in texts(figures.fig6_architectures(table))
    assert "tested on the training data set only" in texts(figures.fig5_ood(table))


def test_funnel_writes_counts_and_reasons():
    counts = pd.DataFrame(
        {"step": ["candidates", "masked"], "left": [9, 7], "drops": ["", "1 mask: no JSON, 1 mask: $2 span"]}
    )
    assert "7 · dropped: 1 mask: no JSON, 1 mask: $2 span" in texts(process_figures.fig_funnel(counts))
    nothing_kept = counts.assign(left=0, drops="")
    assert texts(process_figures.fig_funnel(nothing_kept))


def test_cost_labels_its_values():
    fig = process_figures.fig_cost(pd.DataFrame({"step": ["mask", "ft"], "value": [1200.0, 3]}), "requests")
    assert {"1,200", "3", "mask", "requests"} <= set(texts(fig).splitlines())


def test_unit_cost_stacks_what_was_read_and_written():
    table = pd.DataFrame(
        {"step": ["mask", "vote"], "read": [120.0, 1380.0], "written": [30.0, 0.25], "unit": "tokens"}
    )
    fig = process_figures.fig_unit_cost(table, "kept example")
    read, written = fig.axes[0].containers[:2]
    assert [bar.get_width() for bar in read] == [120, 1380]
    assert [bar.get_x() for bar in written] == [120, 1380]
    assert {"150", "1,380", "mask", "1,530 tokens per kept example"} <= set(texts(fig).splitlines())
    dollars = table.assign(read=0.00012, written=0.001, unit="US dollars")
    dear = process_figures.fig_unit_cost(dollars, "kept example")
    assert "0.00224 US dollars per kept example" in texts(dear)
    assert "there is nothing to divide" in texts(process_figures.fig_unit_cost(table[:0], "kept example"))


def test_loss_curves_draw_each_method():
    log = pd.DataFrame(
        {"method": ["ft"] * 3 + ["cf-distill"] * 40, "step": [*range(3), *range(40)], "loss": 1.0}
    ).assign(val_loss=float("nan"), val_accuracy=float("nan"))
    (only,) = process_figures.fig_loss_curves(log).axes
    assert len(only.lines) == 4  # raw and smoothed
    log.loc[[2, 9, 42], ["val_loss", "val_accuracy"]] = [0.5, 0.25]
    fig = process_figures.fig_loss_curves(log)
    drawn = [[(list(line.get_xdata()), set(line.get_ydata())) for line in ax.lines] for ax in fig.axes[1:]]
    assert drawn == [[([2], {y}), ([6, 39], {y})] for y in (0.5, 25)]
    assert "cf-distill" in texts(fig)
    with pytest.raises(DataError, match="no color and marker for mine"):
        process_figures.fig_loss_curves(log.assign(method="mine"))


def answer(question, method, predicted, text, parsed=True):
    return Prediction(
        question.id, question.dataset, question.split, "", "", method, "direct", question.answer,
        question.stereotype, predicted, text, parsed,
    )  # fmt: skip


QUESTIONS = (
    Question(
        "a", "weasel-commonsense", "shift", "Where is it?", ("shed", "drawer", "basket"), 2, stereotype=1
    ),
    Question("b", "weasel-commonsense", "new", "Costs $5 or $6?", ("five", "six"), 0),
)


def answers():
    first, second = QUESTIONS
    return [
        answer(first, "ft-cot", 1, "Such things are kept in a drawer. " * 10),
        answer(first, "cf-distill", 2, "Sewing ends at the basket. So the answer is basket."),
        answer(second, "ft-cot", 1, "漢字 $$ \x07 " + "x" * 200, parsed=False),
        answer(second, "cf-distill", 0, ""),
    ]


def test_qualitative_marks_right_wrong_and_stereotype():
    table = answer_figures.answers_table(QUESTIONS, answers())
    words = texts(answer_figures.fig_qualitative(table))
    for expected in (
        "✓ basket – right",
        "✗ drawer – what the topic suggests",
        "✗ ft-cot: drawer",
        "✓ cf-distill: basket",
        "✗ ft-cot: six (likeliest option)",
        "□□ $$",
        "(no text)",
        "Costs $5 or $6?",
    ):
        assert expected in words


def test_qualitative_text_stays_in_its_panel():
    fig = answer_figures.fig_qualitative(answer_figures.answers_table(QUESTIONS[:1], answers()))
    fig.canvas.draw()
    middle, end = fig.bbox.width / 2, fig.bbox.width
    for text in fig.axes[0].texts:
        box = text.get_window_extent()
        assert box.x1 < (middle if box.x0 < middle and text.get_position()[1] > 1 else end)
        assert box.y0 > 0


def test_qualitative_needs_every_answer():
    with pytest.raises(DataError, match="cf-distill did not answer question b"):
        answer_figures.answers_table(QUESTIONS, answers()[:3])


def test_saved_files_are_the_same_bytes_again(tmp_path):
    table = study()
    first, second, third = (tmp_path / name for name in ("one", "two", "from_csv"))
    for folder in (first, second):
        path = figures.save(figures.fig_headline(table), table, folder, "headline", "Bars.")
        assert path == folder / "headline.png"
    names = sorted(p.name for p in first.iterdir())
    assert names == ["alt_texts.json", "headline.csv", "headline.pdf", "headline.png"]
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    again = metrics.read_csv(first, "headline.csv")
    path = figures.save(figures.fig_headline(again), again, third, "headline", "Bars.")
    assert path.read_bytes() == (first / "headline.png").read_bytes()


def test_answers_survive_their_csv(tmp_path):
    table = answer_figures.answers_table(QUESTIONS, answers())
    metrics.write_csv(table, tmp_path / "a.csv")
    again = pd.read_csv(tmp_path / "a.csv")
    assert texts(answer_figures.fig_qualitative(again)) == texts(answer_figures.fig_qualitative(table))


def test_alt_texts_are_collected(tmp_path):
    cost = pd.DataFrame({"step": ["mask"], "value": [1]})
    for name in ("b", "a"):
        figures.save(process_figures.fig_cost(cost, "requests"), cost, tmp_path, name, f"Figure {name}.")
    assert json.loads((tmp_path / "alt_texts.json").read_text()) == {"a": "Figure a.", "b": "Figure b."}


def test_figures_do_without_torch():
    code = (
        "import sys; from cfdistill import answer_figures, figures, metrics, results, tables; "
        "assert not {'torch', 'matplotlib', 'pandas', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
