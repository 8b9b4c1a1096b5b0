"""The static site: no script, no address outside, every image described, nothing erased that is not ours."""

import base64
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import browser
import pytest
from nbformat import read, v4, write

from cfdistill.errors import StageError
from cfdistill.evaluate import metrics
from cfdistill.files import MARKER, project_root
from cfdistill.schema import Prediction, Question
from cfdistill.show import stories
from cfdistill.study import results, run, site

OFFLINE = project_root() / "results" / "offline"
COMMITTED = project_root() / "docs" / "site"
LOOK = Path(__file__).with_name("look.js")
HOSTILE = {
    "script": "<script>document.title = 'taken'</script></table></style><img src=x onerror=alert(1)>?",
    "remote": "<img src='https://example.org/a.png'><link rel=stylesheet href=//example.org/b.css>?",
    "quotes": '" onmouseover="alert(1)" \' & &lt;b&gt; `code` | **bold** $x$ [a](javascript:alert(1))?',
    "rtl": "\u202eمن أين\u202c \u2067עברית\u2069 👩🏽\u200d🚀 [MASK] [Direct election]?",
    "long": "word " * 20_000 + "?",
    "unbroken": "x" * 100_000,
}


@pytest.fixture
def study(small_params, monkeypatch):
    """A finished study: the committed results, and notebooks whose every cell shows something hostile."""
    methods, about = ("ft-cot", "cf-distill"), ("csqa", "test", "", "")
    asked = [Question(k, "csqa", "test", t, (f"{t[:300]} a", "b"), 0, cue=t[:50]) for k, t in HOSTILE.items()]
    told = [(q.id, *about, m, "direct", 0, 2, None, 1, f"{q.stem}\0 {m}") for m in methods for q in asked]
    table = stories.answers(asked, [Prediction(*facts) for facts in told], methods)  # as notebook 06 shows
    shutil.copytree(OFFLINE, results.folder(small_params))
    executed = run.executed_folder(small_params)
    executed.mkdir(parents=True)
    monkeypatch.setattr(results, "answers", lambda params: table)
    png = base64.b64encode((OFFLINE / "figures" / "cost.png").read_bytes()).decode()
    shown = [
        *({"text/html": stories.side_by_side(table)}, {"image/png": png}),
        {"application/javascript": "document.title = 'taken'", "text/plain": "<script>"},
        {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "a bar that is done"},
    ]
    state = {"state": {"a": {"model_module": "x", "model_name": "y"}}, "version_major": 2, "version_minor": 0}
    for name in run.select((), small_params):
        notebook = read(run.source_path(name), as_version=4)
        notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": state}
        notebook.cells.insert(3, v4.new_code_cell("seed = 7", metadata={"tags": ["injected-parameters"]}))
        outputs = [v4.new_output("execute_result", data) for data in shown]
        said = {"stdout": "1 %\r100 %\n", "stderr": "!"}
        outputs += [v4.new_output("stream", name=stream, text=text) for stream, text in said.items()]
        notebook.cells.append(v4.new_code_cell("show(table)", outputs=outputs))
        write(notebook, executed / f"{name}.ipynb")
    return small_params


def check_pages(folder):
    also = {path.parent.name for path in folder.glob("*/metrics.csv")}
    assert {path.stem for path in folder.glob("*.html")} == {"index", "answers", *also, *run.NOTEBOOKS}
    for path in folder.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        tags, parser = [], HTMLParser()
        parser.handle_starttag = lambda tag, attrs, tags=tags: tags.append((tag, dict(attrs)))
        parser.feed(text)
        names = [name for name, _ in tags]
        assert not {"script", "iframe", "object", "embed", "form", "base", "video"} & set(names)
        assert names.count("link") == 1  # the style sheet, which loads nothing itself
        styles = "".join(re.findall("(?s)<style.*?</style>", text)) + (folder / "style.css").read_text()
        assert not re.search(r"url\(|@import", styles)
        assert text.index("default-src 'none'") < text.index('<link rel="stylesheet" href="style.css">')
        for name, given in tags:
            assert not [key for key in given if key.startswith("on") or key == "srcset"]
            assert name != "img" or (given.get("alt") and "No description" not in given["alt"]), path
            outside = ("data:image/",) if name == "img" else ("#", "https://")
            for target in filter(None, (given.get("src"), given.get("href"))):
                assert target.startswith(outside) or (folder / target).is_file(), target
                if target.startswith("#"):
                    assert {f'id="{name}"' in text for name in (target[1:], unquote(target[1:]))} != {False}
        read = re.sub(r"(?s)<(pre|code|article|style)\b.*?</\1>|<[^>]*>", "", text)
        assert not re.search(r"\$[^$\n]*[_^\\{][^$\n]*\$", read), "a formula is not rendered"
        assert "\0" not in text
        assert not re.search("/tmp/|/home/|/root/", re.sub("run_root.*|results_root.*", "", text))
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 8_000_000


def check_numbers(page, source):
    shown = re.sub(r"<[^>]*>", "", page.read_text(encoding="utf-8"))
    wanted = (source / "figures" / "table1.md").read_text(encoding="utf-8")
    wanted += " ".join(f"{100 * d:+.1f}" for d in metrics.read_csv(source, "comparisons.csv")["delta"])
    numbers = re.findall(r"[-+]?\d+\.\d+", wanted)
    assert len(numbers) > 50
    assert [number for number in numbers if number not in shown] == []


def test_site_holds_all_pages_and_nothing_from_outside_and_is_the_same_bytes_again(study, tmp_path):
    control = OFFLINE.with_name("offline_control")
    folder = site.build(study, tmp_path / "site", [control]).parent
    check_pages(folder)
    check_numbers(folder / "index.html", OFFLINE)
    check_numbers(folder / "offline_control.html", control)
    page = (folder / "06_qualitative_analysis.html").read_text(encoding="utf-8")
    parts = ["&lt;script&gt;document.title", 'href="07_paper_figures.html"', "<summary>What must hold</"]
    parts += ["<summary>All parameters of this run</", 'aria-current="page">6</a>', "<summary>Imports</"]
    parts += ['href="06_qualitative_analysis.ipynb"', '<span class="n">seed</', 'alt="Figure of the section']
    parts.append("100 %")
    assert [part for part in parts if part not in page] == []
    assert [part for part in ("1 %\r", "a bar that is done") if part in page] == []
    assert "<math " in (folder / "04_training.html").read_text(encoding="utf-8")
    home = (folder / "index.html").read_text(encoding="utf-8")
    assert home.index('href="01_data_preparation.html">1 ·') < home.index("figures/novelty.png")
    assert "@inproceedings{feng2024counterfactual," in home
    grids = (folder / "offline_control.html").read_text(encoding="utf-8")
    assert "<strong>The default study with its control" in grids
    assert not list(folder.rglob("predictions.csv"))
    first = {path.name: path.read_bytes() for path in folder.rglob("*.*")}
    (folder / "left.html").write_text("of an older build, which the next one replaces")
    site.build(study, folder, [control])
    assert {path.name: path.read_bytes() for path in folder.rglob("*.*")} == first


def test_what_is_no_site_of_ours_is_left_alone_and_a_site_needs_a_finished_study(study, tmp_path):
    page = tmp_path / "home" / "index.html"
    page.parent.mkdir()
    page.write_text("years of work")
    for folder in (page.parent, results.folder(study)):
        with pytest.raises(StageError, match="holds something else than"):
            site.build(study, folder)
    assert page.read_text() == "years of work"
    assert (results.folder(study) / "metrics.csv").is_file()
    folder = site.build(study, tmp_path / "site").parent
    with pytest.raises(StageError, match=r"captions.json is missing"):
        site.build(study, folder, [tmp_path])
    (run.executed_folder(study) / "05_evaluation.ipynb").unlink()
    with pytest.raises(StageError, match="has no executed notebook 05_evaluation; make it with"):
        site.build(study, folder)
    check_pages(folder)  # as it was before


@pytest.mark.skipif(not COMMITTED.is_dir(), reason="docs/site is not built yet: make report")
def test_committed_site_is_that_of_the_committed_results():
    check_pages(COMMITTED)
    assert (COMMITTED / MARKER).is_file()  # so that `make report` may replace it
    others = {path.parent: OFFLINE.with_name(path.parent.name) for path in COMMITTED.glob("*/metrics.csv")}
    for copied, source in {COMMITTED: OFFLINE, **others}.items():
        for file in metrics.FILES[:2]:
            assert (copied / file).read_bytes() == (source / file).read_bytes(), copied
    check_numbers(COMMITTED / "index.html", OFFLINE)


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_nothing_is_asked_from_outside_cut_or_faint(study, tmp_path, width):
    folder = site.build(study, tmp_path / "site").parent
    with browser.tab() as tab:
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        tab.ask("Emulation.setDeviceMetricsOverride", **screen)
        for path in sorted(folder.glob("*.html")):
            asked, said = tab.open(path)
            assert all(url.startswith((folder.as_uri(), "data:image/")) for url in asked)
            assert said == []  # no error, no blocked load
            assert tab.value(LOOK.read_text()) == "", path
        tab.open(folder / "answers.html")
        counts = "[...document.querySelectorAll('article')].filter((e) => e.checkVisibility()).length"
        assert tab.value(counts) == len(HOSTILE)
        tab.value("document.getElementById('only-ft-cot-right').click()")  # and all of them were wrong
        assert tab.value(counts) == 0
