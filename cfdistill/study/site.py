"""The static site of a study: plain HTML; equal inputs give equal bytes, and no text brings a script."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import jinja2
from latex2mathml.converter import convert
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from nbformat import NotebookNode, read

from cfdistill import __version__, files
from cfdistill.errors import StageError
from cfdistill.evaluate import metrics
from cfdistill.params import Params
from cfdistill.show import stories, tables
from cfdistill.study import results, run

PLACE = Path(__file__).parent
TEMPLATES = jinja2.Environment(loader=jinja2.FileSystemLoader(PLACE), autoescape=True)
TEMPLATE, RESULTS = (TEMPLATES.get_template(f"{name}.html") for name in ("site", "site_results"))
SHOWN = ("text/html", "image/png", "text/markdown", "text/plain")  # kinds of output; others are scripts
WIDGET = "application/vnd.jupyter.widget-view+json"  # a progress bar, whose text is of no use when it is done
HEADING = re.compile(r'<h2 id="([^"]+)">(.+?)<a class="anchor-link"')
# Code, which is left as it is, or a formula. Prices are none: a formula does not begin with a digit.
FORMULA = re.compile(r"(?s)(```.*?```|`[^`\n]*`)|\$\$(.+?)\$\$|\$([^\s$\d](?:[^$\n]*[^\s$\\])?)\$")


@dataclass(frozen=True)
class Page:
    """One page: its file's name, its title, the question it answers, and what is in it as HTML."""

    name: str
    title: str
    question: str
    body: str

    @property
    def headings(self) -> list[tuple[str, str]]:
        """The address and the text of every heading of the second level."""
        return [(address, Markup(text)) for address, text in HEADING.findall(self.body)]


def build(params: Params, folder: Path, also: Sequence[Path] = ()) -> Path:
    """Write the site of a finished study, with a page for each results folder in `also`; return its index."""
    source, executed = results.folder(params), run.executed_folder(params)
    notebooks = [executed / f"{name}.ipynb" for name in run.select((), params)]
    if missing := [path.stem for path in notebooks if not path.is_file()]:
        command = f"`cfdistill run params/{params.profile}.yaml`"
        raise StageError(f"{executed} has no executed notebook {missing[0]}; make it with {command}")
    said = {path: results.read_captions(path) for path in (source, *also)}  # before anything is deleted
    answers = stories.side_by_side(results.answers(params), filters=True)
    chapters = [_chapter(path) for path in notebooks]
    with files.writing(folder):
        files.empty(folder, "site", params.profile)
        shutil.copyfile(PLACE / "site.css", folder / "style.css")
        for chapter in chapters:
            shutil.copyfile(run.source_path(chapter.name), folder / f"{chapter.name}.ipynb")
        further = [Page("answers", "Answers", "What did every student answer to every question?", answers)]
        for path in also:
            shown = _results(path, folder, f"{path.name}/", said[path])
            finding = next((figure["finding"] for figure in said[path].values()), "")
            further.append(Page(path.name, path.name, question(path.name), finding + shown))
        home = Page("index", "cfdistill", "", _results(source, folder, "", said[source]))
        git = results.read_manifest(source)["git"]
        for page in (home, *chapters, *further):
            facts = {"chapters": chapters, "further": further, "version": __version__, "git": git}
            files.write_text(folder / f"{page.name}.html", TEMPLATE.render(page=page, **facts))
    return folder / "index.html"


def question(name: str) -> str:
    """Return the question that a profile or grid begins with, in the comment above its parameters."""
    found = sorted((files.project_root() / "params").rglob(f"{name}.yaml"))
    lines = found[0].read_text(encoding="utf-8").splitlines() if found else []
    comment = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))
    return re.split(r"(?<=[.?]) ", comment)[0]


def _results(source: Path, site: Path, place: str, said: Mapping[str, Any]) -> str:
    """Copy results into a place of the site ("" or a folder's name and "/"); return them as HTML."""
    ignored = shutil.ignore_patterns("*.pdf", "*.tex")
    shutil.copytree(source / "figures", site / place / "figures", ignore=ignored)
    kept = [name for name in (*metrics.FILES[:2], "manifest.json") if (source / name).is_file()]
    for name in kept:
        shutil.copyfile(source / name, site / place / name)
    table = source / "figures" / "table1.md"  # there is none of what is swept, or trained together
    compared = tables.differences(metrics.read_csv(source, metrics.FILES[1]))
    return RESULTS.render(
        place=place,
        kept=kept,
        table=markdown2html(table.read_text(encoding="utf-8")) if table.is_file() else "",
        differences=markdown2html(compared),
        figures=[(name, said[name]) for name in results.FIGURES if name in said],
    )


def _chapter(path: Path) -> Page:
    """Return an executed notebook as a page without scripts, every image with its alternative text."""
    notebook = read(path, as_version=4)
    title, _, rest = notebook.cells[0].source.partition("\n")
    question = (re.findall(r"(?s)\*\*(.+?)\*\*", rest) or [""])[0]
    notebook.metadata.pop("widgets", None)  # their state would be a script
    section = ""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            _prepare_code(cell, section)
        else:
            section = (re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE) or [section])[0]
            cell.source = re.sub(r"\]\((\d\d_\w+)\.ipynb\)", r"](\1.html)", cell.source)
            cell.source = FORMULA.sub(_formula, cell.source)
    exporter = HTMLExporter(template_name="basic")
    exporter.register_preprocessor("nbconvert.preprocessors.CoalesceStreamsPreprocessor", enabled=True)
    body = str(exporter.from_notebook_node(notebook)[0])
    return Page(path.stem, title.lstrip("# "), " ".join(question.split()), body)


def _prepare_code(cell: NotebookNode, section: str) -> None:
    """Leave what a page shows of a code cell; parameters, imports and checks are folded."""
    cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" and WIDGET not in o.get("data", {})]
    for output in cell.outputs:
        if "data" in output:
            output.data = {kind: output.data[kind] for kind in SHOWN if kind in output.data}
        if "image/png" in output.get("data", {}):
            output.metadata.setdefault("image/png", {}).setdefault("alt", f"Figure of the section {section}")
    summary = ""
    if "injected-parameters" in cell.metadata.get("tags", []):
        summary = "All parameters of this run"
    elif not cell.outputs:
        checks = re.search(r"^ *assert ", cell.source, re.MULTILINE)
        imports = cell.source.startswith(("import ", "from "))
        summary = "What must hold" if checks else "Imports" if imports else ""
    if summary:
        folded = f"<details><summary>{summary}</summary>\n\n```python\n{cell.source}\n```\n</details>"
        cell.update({"cell_type": "markdown", "source": folded})


def _formula(found: re.Match[str]) -> str:
    """Return a formula as MathML, code as it is."""
    code, block, inline = found.groups()
    return code or str(convert(block or inline, display="block" if block else "inline"))
