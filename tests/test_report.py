"""The static site: no script, no address outside, every image described, every digit from the tables."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser

import browser
import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_output
from studies import committed

from cfdistill import answer_figures, figures, metrics, qualitative, report, results, runner, runs, tables
from cfdistill.cli import main
from cfdistill.errors import StageError
from cfdistill.schema import Question

ROOT = runs.project_root()
COMMITTED = ROOT / "docs" / "site"
HOSTILE = {
    "script": "<script>document.title = 'taken'</script></table></style><img src=x onerror=alert(1)>?",
    "remote": "<img src='https://example.org/a.png'><link rel=stylesheet href=//example.org/b.css>?",
    "quotes": '" onmouseover="alert(1)" \' & &lt;b&gt; `code` | **bold** $x$ [a](javascript:alert(1))?',
    "rtl": "\u202eمن أين\u202c \u2067עברית\u2069 👩🏽\u200d🚀 [MASK] [Direct election]?",
    "long": "word " * 20_000 + "?",
    "unbroken": "x" * 100_000,
}


def hostile_answers():
    """Return the table that notebook 06 reads, of questions and answers that try to break out."""
    rows = []
    for name, text in HOSTILE.items():
        question = Question(name, "csqa", "test", text, (f"{text[:300]} a", "b"), 0, cue=text[:50])
        for method in ("ft-cot", "cf-distill"):
            row = {"id": name, "split": "test", "scene": "", "stem": question.stem, "cue": question.cue}
            row |= {"options": "\n".join(question.options), "gold": 0, "stereotype": None, "method": method}
            rows.append(row | {"predicted": 1, "text": f"{text}\0 {method}", "parsed": True})
    return qualitative.sorted_out(pd.DataFrame(rows))


@pytest.fixture
def study(small_params):
    """A finished study: the committed results, and notebooks whose every cell shows something."""
    shutil.copytree(ROOT / "results" / "offline", runs.results_folder(small_params))
    executed = runner.executed_folder(small_params)
    executed.mkdir(parents=True)
    png = (ROOT / "results/offline/figures/cost.png").read_bytes()
    answers = hostile_answers()
    pages = qualitative.browse(answers, ["test"]) + qualitative.side_by_side(answers)
    shown = [
        {"text/html": pages},
        {"image/png": base64.b64encode(png).decode()},
        {"application/javascript": "document.title = 'taken'", "text/plain": "<script>"},
        {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "a bar"},
        {"text/markdown": "| a |\n| --- |\n| b |"},
    ]
    for name in runner.NOTEBOOKS:
        notebook = nbformat.read(runner.source_path(name), as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        given = nbformat.v4.new_code_cell("seed = 7", metadata={"tags": ["injected-parameters"]})
        notebook.cells.insert(3, given)
        for cell, data in zip(code, shown, strict=False):
            cell.outputs = [new_output("execute_result", data)]
        code[-1].outputs = [
            new_output("stream", text="1 %\r100 %\n"),
            new_output("stream", name="stderr", text="!"),
        ]
        nbformat.write(notebook, executed / f"{name}.ipynb")
    return small_params


class Scan(HTMLParser):
    """Collects what a page loads, links to and describes."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loaded, self.links, self.alts, self.handlers = [], [], [], [], []
        self.feed(text)
        self.loaded += re.findall(
            r"url\(([^)]*)\)|@import[^;]*", "".join(re.findall("(?s)<style.*?</style>", text))
        )

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.loaded += [given[name] for name in ("src", "srcset", "data", "poster") if name in given]
        self.links += [given["href"]] if "href" in given else []
        self.alts += [given.get("alt")] if tag == "img" else []
        self.handlers += [name for name in given if name.startswith("on")]


def check_pages(site):
    """Assert of all pages what holds for any site."""
    pages = sorted(site.glob("*.html"))
    also = {path.parent.name for path in site.glob("*/metrics.csv")}
    assert {path.stem for path in pages} == {"index", *also, *runner.NOTEBOOKS}
    assert not re.search(r"url\(|@import", (site / "style.css").read_text(encoding="utf-8"))
    for path in pages:
        text = path.read_text(encoding="utf-8")
        found = Scan(text)
        assert not {"script", "iframe", "object", "embed", "form", "base"} & set(found.tags)
        assert found.tags.count("link") == 1  # the style sheet, which loads nothing itself
        assert not found.handlers
        assert text.index("Content-Security-Policy") < text.index('<link rel="stylesheet" href="style.css">')
        assert "default-src 'none'" in text
        assert 'name="viewport"' in text
        assert all(alt and "No description" not in alt for alt in found.alts), path
        for target in found.loaded:
            assert target.startswith("data:image/") or (site / target).is_file(), target
        for target in found.links:
            assert target.startswith(("#", "https://")) or (site / target).is_file(), target
        assert "\0" not in text
        for word in ("/tmp/", "/home/", "/root/"):
            assert word not in re.sub("run_root.*|results_root.*", "", text)
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) <= 5_000_000


def check_numbers(site, page="index.html", place="."):
    """Assert that a page shows the digits that the tables beside it give."""
    folder = [metrics.read_csv(site / place, name) for name in metrics.FILES[:2]]
    shown = re.sub(r"<[^>]*>|\s", "", (site / page).read_text(encoding="utf-8"))
    table = site / place / "figures" / "table1.md"
    block = tables.differences_block(folder[1])
    if table.is_file():  # a sweep has none
        block = tables.readme_block(*folder, results.read_manifest(site) if place == "." else None)
        assert table.read_text().startswith(tables.to_markdown(*folder, reported=True))
    numbers = 0
    for line in block.splitlines():
        for part in re.split(r"\||\*|\\|`", line.lstrip("- ")):
            bare = re.sub(r"\s", "", part).replace("<", "&lt;")
            if bare.strip("-"):
                assert bare in shown, part
                numbers += len(re.findall(r"\d+\.\d", part))
    assert numbers > (100 if place == "." else 20)


def test_state_of_widgets_makes_no_script():
    state = {"state": {"a": {"model_module": "x", "model_name": "y"}}, "version_major": 2, "version_minor": 0}
    notebook = nbformat.v4.new_notebook(
        metadata={"widgets": {"application/vnd.jupyter.widget-state+json": state}}
    )
    assert "<script" not in report._notebook_html(notebook)


def test_site_holds_all_pages_and_nothing_from_outside(study, tmp_path):
    index = report.build(study, tmp_path / "site", [ROOT / "results" / "offline_control"])
    check_pages(index.parent)
    check_numbers(index.parent)
    check_numbers(index.parent, "offline_control.html", "offline_control")
    page = (index.parent / "06_qualitative_analysis.html").read_text(encoding="utf-8")
    assert "100 %" in page
    assert "1 %\r" not in page
    assert "&lt;script&gt;document.title" in page
    assert 'href="07_paper_figures.html"' in page
    assert "<details><summary>All parameters of this run</summary>" in page
    assert '<span class="n">seed</span>' in page
    figure = (index.parent / "07_paper_figures.html").read_text(encoding="utf-8")
    assert 'alt="Figure of the section' in figure


def test_pages_of_sweeps_and_joint_training_show_their_differences(study, tmp_path):
    """Made up from the committed study: grids of that kind need not be committed for it."""
    changes = {"sweep": ("spurious_rate", (0.5, 0.9)), "joint": ("train_dataset", ("weasel-all",))}
    for name, (column, values) in changes.items():
        (tmp_path / name).mkdir()
        for file in metrics.FILES[:2]:
            table = metrics.read_csv(ROOT / "results" / "offline", file)
            both = pd.concat([table.assign(**{column: value}) for value in values])
            metrics.write_csv(both, tmp_path / name / file)
        results.draw(tmp_path / name)
    site = report.build(study, tmp_path / "site", [tmp_path / name for name in changes]).parent
    check_pages(site)
    for name in changes:
        check_numbers(site, f"{name}.html", name)
    id = committed("comparisons.csv", method_a="cf-distill", method_b="ft", test_split="id")
    said = f"spurious_rate 0.5): id {100 * id.delta:+.1f} ["
    assert said in (site / "sweep.html").read_text(encoding="utf-8")


def test_site_is_the_same_bytes_again(study, tmp_path):
    for name in ("one", "two", "two"):  # the last build replaces the one before
        report.build(study, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert files == sorted(path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*.*"))
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_site_needs_a_finished_study_and_a_folder_of_its_own(study, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(StageError, match="holds something else than a site"):
        report.build(study, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").is_file()
    with pytest.raises(StageError, match="make it with `cfdistill figures"):
        report.build(study, tmp_path / "site", [tmp_path / "mine"])
    (runner.executed_folder(study) / "05_evaluation.ipynb").unlink()
    with pytest.raises(StageError, match="has no executed notebook 05_evaluation; make it with"):
        report.build(study, tmp_path / "site")
    assert main(["report", str(ROOT / "params/none.yaml"), "--out", str(tmp_path / "site")]) == 1
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.skipif(not COMMITTED.is_dir(), reason="docs/site is not built yet: make report")
def test_committed_site_is_that_of_the_committed_results():
    check_pages(COMMITTED)
    check_numbers(COMMITTED)
    places = {path.parent.name: path.parent for path in COMMITTED.glob("*/metrics.csv")}
    for name, copied in {"offline": COMMITTED, **places}.items():
        for file in metrics.FILES[:2]:
            assert (copied / file).read_bytes() == (ROOT / "results" / name / file).read_bytes(), copied
        if name != "offline":
            check_numbers(COMMITTED, f"{name}.html", name)


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="Chromium is not installed")
def test_in_a_browser_nothing_is_asked_from_outside_and_phones_can_read_it(study, tmp_path):
    site = report.build(study, tmp_path / "site").parent
    with browser.tab() as tab:
        for path in sorted(site.glob("*.html")):
            for width in (1280, 390) if path.stem in ("index", "06_qualitative_analysis") else (390,):
                asked, said = tab.open(path, width)
                assert all(url.startswith((site.as_uri(), "data:image/")) for url in asked)
                assert said == []  # no error, no blocked load
                assert tab.evaluate("document.documentElement.scrollWidth") == width
                assert tab.evaluate("document.title") != "taken"
                assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        tab.open(site / "06_qualitative_analysis.html", 390)
        count = "[...document.querySelectorAll('.browse tr.q')].filter(r => r.offsetParent).length"
        tab.evaluate("document.querySelector('details details, .browse details').open = true")
        assert tab.evaluate(count) == len(HOSTILE)
        tab.evaluate("document.querySelector('.browse input[id$=ours-right]').click()")
        assert tab.evaluate(count) == 0
        tab.evaluate("document.querySelector('.browse input[id$=ours-other]').click()")
        assert tab.evaluate(count) == len(HOSTILE)


def test_texts_that_try_to_break_out_survive_their_file_and_stay_in_their_figure(tmp_path):
    answers = hostile_answers()
    metrics.write_csv(answers, tmp_path / "fig7_qualitative.csv")
    again = metrics.read_csv(tmp_path, "fig7_qualitative.csv")
    for column in ("stem", "options", "text"):
        assert list(again[column]) == list(answers[column])
    path = figures.save(answer_figures.fig_qualitative(again), again, tmp_path, "fig7_qualitative", "Texts.")
    assert answer_figures.fig_qualitative(again).get_size_inches()[1] < 60
    assert path.stat().st_size > 10_000


def test_alternative_texts_tell_the_numbers():
    texts = json.loads((ROOT / "results/offline/figures/alt_texts.json").read_text())
    table = metrics.over_seeds(metrics.read_csv(ROOT / "results/offline", "metrics.csv"))
    for row in metrics.each_row(table[table["test_split"] == "shift"]):
        assert f"{row.method} {100 * row.accuracy:.0f} %" in texts["headline"]
