import itertools
import json
import random
from collections import defaultdict

import matplotlib
import pandas as pd
import pytest

from cfdistill.errors import DataError
from cfdistill.evaluate import metrics
from cfdistill.methods import METHODS
from cfdistill.schema import Prediction, Question
from cfdistill.show import figures, stories, style

pytestmark = pytest.mark.filterwarnings("error")
DATASETS = ("weasel-commonsense", "weasel-qualitative", "weasel-science")
USUAL = ("ft", "ft-cot", "cf-distill")


def study(train="weasel-commonsense", student="smollm2-135m", seed=0, methods=USUAL):
    """Metrics of random answers on a training set's own splits and on the other sets."""
    rng = random.Random(f"{train}/{student}/{seed}")
    cells = [(train, split) for split in ("id", "shift", "new")]
    cells += [(dataset, "new") for dataset in DATASETS if dataset != train]
    answers = [
        Prediction(f"q{i}", *cell, "", "", m, METHODS[m].scoring, 0, 4, 1, rng.randrange(4), "")
        for cell, m, i in itertools.product(cells, methods, range(20))
    ]
    return metrics.metrics_table(metrics.predictions_table(answers, train, student, seed, defaultdict(str)))


def texts(fig):
    """All words of a figure, after a drawing that must not warn."""
    fig.canvas.draw()
    found = fig.findobj(lambda artist: hasattr(artist, "get_text") and artist.get_visible())
    return "\n".join(t.get_text() for t in found)


def titles(fig):
    return [ax.get_title() for ax in fig.axes if ax.get_visible()]


def groups(ax):
    return [label.get_text() for label in ax.get_xticklabels()]


def heights(ax, method):
    """The heights of a method's bars, which stand before its intervals."""
    at = [container.get_label() for container in ax.containers].index(method)
    return [bar.get_height() for bar in ax.containers[at - 1]]


def test_every_method_has_its_own_look_and_one_without_is_refused_not_left_out():
    for look in ("color", "marker"):
        assert len({getattr(method, look) for method in METHODS.values()}) == len(METHODS)
    with pytest.raises(DataError, match="no such method: dpo; add it to METHODS"):
        style.methods_in(pd.DataFrame({"method": ["ft", "dpo"]}))


def test_headline_draws_a_bar_per_method_and_split_at_its_accuracy():
    table = study()
    fig = figures.fig_headline(table)
    right, lured = fig.axes
    own = table[(table.method == "ft-cot") & (table.test_dataset == "weasel-commonsense")]
    for ax, rates, guesses in ((right, own.accuracy, 3), (lured, own.lure_rate, 0)):
        assert heights(ax, "ft-cot") == pytest.approx(list(100 * rates))
        assert len(ax.patches) == 9
        lines = [list(line.get_ydata()) for line in ax.lines if line.get_linestyle() == "--"]
        assert lines == [[25, 25]] * guesses  # of four options
    assert groups(right)[0] == "id\nshortcut holds\nn = 20"
    assert [t.get_text() for t in fig.legends[0].get_texts()] == [*USUAL, "guessing"]


def test_seeds_are_averaged_and_nothing_else_is():
    two = figures.fig_headline(pd.concat([study(seed=0), study(seed=1)])).axes[0]
    assert len(two.patches) == 9
    assert groups(two)[0].endswith("n = 20\n2 seeds")
    students = pd.concat([study(student="a"), study(student="b")])
    data_seeds = pd.concat([study().assign(data_seed=0), study(seed=1).assign(data_seed=1)])
    for table, found in ((students, "one student, got a, b"), (data_seeds, "one data_seed, got 0, 1")):
        for draw in (figures.fig_headline, figures.fig5_ood):
            with pytest.raises(DataError, match=f"{found}; choose one"):
                draw(table)
    with pytest.raises(DataError, match="one student, got a, b"):
        figures.fig_sweep(students.assign(spurious_rate=0.5))


def test_fig5_has_a_panel_per_training_set():
    fig = figures.fig5_ood(pd.concat([study(name) for name in DATASETS]))
    assert titles(fig) == [f"trained on {n}: right (%)" for n in ("commonsense", "qualitative", "science")]
    assert all(len(ax.patches) == 2 * 3 for ax in fig.axes if ax.get_visible())  # two sets, three methods
    assert groups(fig.axes[0]) == ["qualitative\nn = 20", "science\nn = 20"]


def test_novelty_goes_from_what_was_shown_to_other_formats_and_leaves_out_small_steps():
    cells = [("weasel-commonsense", "shift"), *((name, "new") for name in DATASETS)]
    news = ["cue"] * 10 + ["answer"] * 30 + ["cause"] * 50
    steps = {(name, f"q{i}"): step for name in DATASETS for i, step in enumerate(news)}
    told = [
        Prediction(f"q{i}", *cell, "", "", m, METHODS[m].scoring, 0, 4, 1, i % 2, "")
        for cell, m, i in itertools.product(cells, ("base", "cf-distill"), range(90))
    ]
    table = metrics.metrics_table(metrics.predictions_table(told, DATASETS[0], "smollm2-135m", 0, steps))
    (ax,) = figures.fig_novelty(table).axes
    counts = {"answer\nshown": 30, "cause\nnew": 50, "scene\nnew": 90, "format\nnew": 180}
    assert groups(ax) == [f"{label}\nn = {count}" for label, count in counts.items()]
    assert heights(ax, "base") == pytest.approx([50] * 4)
    assert len([line for line in ax.lines if line.get_linestyle() == "--"]) == 4
    said = figures.words("novelty", table)
    assert "n = 30 to 180; trained: smollm2-135m. Highest: answer shown base 50.0 %; cause" in said["caption"]
    assert "format new cf-distill 50.0 %" in said["alt"]


def test_what_cannot_be_drawn_or_compared_is_said_in_words():
    one = study(methods=["ft"])
    assert [len(fig.axes[0].patches) for fig in (figures.fig_headline(one), figures.fig5_ood(one))] == [3, 2]
    own, other = (one[(one.test_dataset == "weasel-commonsense") == kind] for kind in (True, False))
    swept = other.assign(spurious_rate=1.0)
    assert "new to training" in figures.fig_novelty(own).get_label()
    for fig, said in (
        (figures.fig6_architectures(one), "one student only"),
        (figures.fig5_ood(own), "tested on the training data set only"),
        (figures.fig_headline(other), "not tested on the training data set"),
        (figures.fig_sweep(swept), "not tested on"),
        (figures.fig_qualitative(answers()[:0]), "no such answers"),
    ):
        assert said in fig.get_label()
        assert said in texts(fig).replace("\n", " ")


def test_figures_of_a_benchmark_and_of_several_students():
    table = study()
    table = table[(table.test_dataset == "weasel-commonsense") & (table.test_split == "new")]
    table = table.assign(train_dataset="csqa", test_dataset="csqa", test_split="test", lure_rate=float("nan"))
    assert titles(figures.fig_headline(table)) == ["right answers (%), higher is better"]
    fig = figures.fig6_architectures(pd.concat([table, table.assign(student="gpt2")]))
    assert titles(fig) == ["csqa test: right (%)"]
    assert groups(fig.axes[0]) == ["smollm2-\n135m\nn = 20", "gpt2\nn = 20"]
    sizes = pd.concat([table.assign(train_scenes=n) for n in (10, 20)])
    assert titles(figures.fig_sweep(sizes)) == ["test (right, %)"]


def test_a_sweep_is_a_line_per_method_through_its_mean_accuracies():
    cells = [(rate, seed) for rate in (0.9, 0.2, 0.5) for seed in (0, 1)]
    table = pd.concat([study(seed=i).assign(seed=s, spurious_rate=r) for i, (r, s) in enumerate(cells)])
    fig = figures.fig_sweep(table)
    splits = ("id: shortcut holds", "shift: shortcut broken", "new: unseen scenes")
    assert titles(fig) == [f"{split} (right, %)" for split in splits]
    assert fig.axes[0].get_xlabel().endswith("n = 20, 2 seeds")
    means = metrics.over_seeds(table).query("method == 'ft-cot' and test_split == 'shift'")
    line = next(line for line in fig.axes[1].lines if line.get_color() == METHODS["ft-cot"].color)
    assert list(line.get_ydata()) == pytest.approx(list(100 * means.sort_values("spurious_rate").accuracy))
    assert len(fig.axes[1].containers) == 3  # a line per method with its intervals
    assert list(fig.axes[0].get_xticks()) == [0.2, 0.5, 0.9]
    first, *_, last = 100 * means.sort_values("spurious_rate").accuracy
    said = figures.words("spurious_sweep", table)["finding"]
    assert said.startswith("From 0.2 to 0.9: id: shortcut holds")
    assert f"shift: shortcut broken (right, %) ft-cot {first:.1f} % {last:.1f} %" in said


def test_funnel_and_costs_write_their_numbers():
    drops = ["", "1 mask: no JSON, 1 mask: $2 span"]
    counts = pd.DataFrame({"step": ["candidates", "masked"], "left": [9, 7], "drops": drops})
    shown = texts(figures.fig_funnel(counts)).replace("\n", " ")
    assert "7 · dropped: 1 mask: no JSON, 1 mask: $2 span" in shown
    texts(figures.fig_funnel(counts.assign(left=0, drops="")))
    steps = ["training ft", "training cf-distill", "evaluation ft", "data"]
    fig = figures.fig_cost(pd.DataFrame({"step": steps, "value": [3.0, 2, 1, 1200]}))
    assert {"1,200", "3", "seconds"} <= set(texts(fig).splitlines())
    names = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    assert names == ["data", "training ft", "evaluation ft", "training cf-distill"]  # shared, then by method
    assert fig.axes[0].patches[1].get_facecolor()[:3] == pytest.approx((127 / 255,) * 3)  # of ft


def answers(methods=("ft-cot", "cf-distill")):
    shelf = Question("a", "weasel", "shift", "Where is it?", ("shed", "drawer", "basket"), 2, stereotype=1)
    price = Question("b", "weasel", "new", "Costs $5 or $6?", ("five", "six"), 0)
    told = [
        (shelf, "ft-cot", 1, "Such things are kept in a drawer. " * 4000),
        (shelf, "cf-distill", 2, "Sewing ends at the basket. So the answer is basket."),
        (price, "ft-cot", 1, "漢字 $$ \x07 " + "x" * 200, False),
        (price, "cf-distill", 0, ""),
    ]
    facts = [(q.id, "weasel", q.split, "", "", m, "direct", q.answer, 2, None, *x) for q, m, *x in told]
    return stories.answers([shelf, price], [Prediction(*fact) for fact in facts], methods)


def test_qualitative_marks_right_wrong_and_stereotype(tmp_path):
    fig = figures.fig_qualitative(answers())
    words = texts(fig)
    assert {
        "✓ basket – right", "✗ drawer – what the topic suggests", "✗ ft-cot: drawer", "✓ cf-distill: basket",
        "(no text)", "Costs $5 or $6?",
    } <= set(words.splitlines())  # fmt: skip
    wide = figures.fig_qualitative(answers(), width=style.PAGE)
    assert "✗ ft-cot: six (likeliest option)" in texts(wide).splitlines()
    assert "□□ $$" in words
    assert wide.get_size_inches()[1] < fig.get_size_inches()[1] < 60
    for box in (text.get_window_extent() for text in fig.axes[0].texts if text.get_text()):
        assert box.x1 < fig.bbox.width
        assert 0 <= box.y0 < box.y1 <= fig.bbox.height
    metrics.write_csv(answers(), tmp_path / "a.csv")
    assert texts(figures.fig_qualitative(pd.read_csv(tmp_path / "a.csv"))) == words
    assert "ft-cot" not in texts(figures.fig_qualitative(answers(["cf-distill"])))


def test_zeros_are_drawn_whole_and_page_width_sets_panels_beside_each_other():
    table = study().assign(accuracy=0.0, ci_low=0.0)
    column, page = (figures.fig_headline(table, width=width) for width in (style.COLUMN, style.PAGE))
    assert not any(line.get_clip_on() for line in column.axes[0].lines if line.get_linestyle() == "None")
    for fig, beside in ((column, False), (page, True)):
        texts(fig)
        first, second = (ax.get_position() for ax in fig.axes)
        assert (first.y0 == pytest.approx(second.y0)) == beside
    assert [fig.get_figwidth() for fig in (column, page)] == [3.25, 6.75]


def test_saved_files_are_the_same_bytes_again_whatever_the_readers_settings(tmp_path):
    table, every = study(), ("pdf", "png", "svg")
    said = {"caption": "Bars of ft_x, 5 %, p < 0.05", "alt": "ft"}
    for folder, size in (("one", 10), ("two", 20)):
        with matplotlib.rc_context({"font.size": size, "axes.facecolor": "red", "figure.dpi": 50}):
            style.save(figures.fig_headline(table), table, tmp_path / folder / "headline", said, every)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert set(one) == {"captions.json", *(f"headline.{end}" for end in (*every, "csv", "tex"))}
    assert json.loads(one["captions.json"]) == {"headline": said}
    assert r"\caption{Bars of ft\_x, 5 \%, $p<0.05$}" in one["headline.tex"].decode()
    again = metrics.read_csv(tmp_path / "one", "headline.csv")
    style.save(figures.fig_headline(again), again, tmp_path / "one" / "another", said)
    assert (tmp_path / "one" / "another.png").read_bytes() == one["headline.png"]


def test_methods_have_other_names_and_texts_another_font_where_a_reader_says_so(tmp_path):
    fig, labels = figures.fig_headline(study()), {"ft-cot": "FT-CoT", "ft": "FT"}
    style.save(fig, study(), tmp_path / "a", {"caption": "ft, ft-cot-long"}, ["png"], "DejaVu Serif", labels)
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["FT", "FT-CoT", "cf-distill", "guessing"]
    assert {t.get_fontfamily()[0] for t in fig.findobj(matplotlib.text.Text)} == {"DejaVu Serif"}
    assert json.loads((tmp_path / "captions.json").read_text()) == {"a": {"caption": "FT, ft-cot-long"}}
    with pytest.raises(DataError, match="no format gif; there are pdf, png, svg"):
        style.save(fig, study(), tmp_path / "a", {"caption": ""}, ["gif"])
