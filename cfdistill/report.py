"""The static site of a study: its executed notebooks, tables and figures as plain HTML files.

The pages need no server, no script and no network, and a content security policy forbids all three
to whatever text a data set or a student may bring. The same inputs give the same bytes.
"""

from __future__ import annotations

import re
import shutil
from html import escape
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from cfdistill import metrics, results, runner, runs, tables
from cfdistill.errors import StageError
from cfdistill.params import Params

if TYPE_CHECKING:
    from nbformat import NotebookNode

POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
HOME = "cfdistill"
SHOWN = ("text/html", "image/png", "text/markdown", "text/plain")  # kinds of output; others are scripts
INTRODUCTION = """# cfdistill

Small language models that are trained on a teacher's explanations learn shortcuts: words that often go
with an answer, instead of the words that decide it. *Counterfactual distillation* (Feng et al., EMNLP 2024)
lets the teacher rewrite each question so that another option becomes right, and trains on both. These
pages are one reproducible study of it: data, prompts, filters, training, tests and figures, in notebooks.

"""


def build(params: Params, folder: Path) -> Path:
    """Write the site of a finished study into a folder, replacing it, and return its `index.html`.

    Args:
        params: of the study; its executed notebooks and its results folder are read.
        folder: of the site.

    Raises:
        StageError: a notebook was not executed, the results are missing, or the folder holds other files.
    """
    import nbformat

    names = runner.select((), params)
    source, executed = runs.results_folder(params), runner.executed_folder(params)
    missing = [name for name in names if not (executed / f"{name}.ipynb").is_file()]
    if missing:
        raise StageError(
            f"{executed} has no executed notebook {missing[0]}; make it with "
            f"`cfdistill run params/{params.profile}.yaml`"
        )
    results.read_manifest(source)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "index.html").is_file():
        raise StageError(f"{folder} holds something else than a site; choose another folder with --out")
    with runs.writing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(metrics.FILES[2]))
        rows = []
        for name in names:
            notebook = nbformat.read(executed / f"{name}.ipynb", as_version=4)
            title, question = _opening(notebook.cells[0].source)
            rows.append(f"| [{title}]({name}.html) | {question} |")
            _write(folder / f"{name}.html", title, _notebook_html(notebook))
        _write(folder / "index.html", HOME, _index(folder, rows))
    return folder / "index.html"


def page(title: str, body: str) -> str:
    """Return a whole page; the body must be HTML already."""
    from pygments.formatters import HtmlFormatter

    style = HtmlFormatter(style="default").get_style_defs(".highlight")
    style += f"\n{Path(__file__).with_suffix('.css').read_text(encoding='utf-8')}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<nav><a href="index.html">{HOME}</a></nav>\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )


def _notebook_html(notebook: NotebookNode) -> str:
    """Return an executed notebook as HTML without scripts, every image with its alternative text."""
    from nbconvert import HTMLExporter

    section = ""
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.cell_type = "markdown"
            folded = (
                "<details><summary>All parameters of this run</summary>\n\n```python\n{}\n```\n</details>"
            )
            cell.source = folded.format(cell.source)
        elif cell.cell_type == "markdown":
            section = (re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE) or [section])[0]
            cell.source = re.sub(r"\]\((\d\d_\w+)\.ipynb\)", r"](\1.html)", cell.source)
        for output in cell.get("outputs", []):
            if "data" in output:
                output.data = {kind: output.data[kind] for kind in SHOWN if kind in output.data}
            if "image/png" in output.get("data", {}):
                facts = output.metadata.setdefault("image/png", {})
                facts.setdefault("alt", f"Figure of the section {section}. {_purpose(cell.source)}".strip())
    exporter = HTMLExporter(template_name="basic")
    exporter.register_preprocessor("nbconvert.preprocessors.CoalesceStreamsPreprocessor", enabled=True)
    html: str = exporter.from_notebook_node(notebook)[0]
    return html


def _purpose(source: str) -> str:
    """Return the first line that documents the figure function a cell calls, or nothing."""
    called = re.search(r"(\w*figures)\.(fig\w+)\(", source)
    if called is None:
        return ""
    function = getattr(import_module(f"cfdistill.{called[1]}"), called[2])
    return str(function.__doc__).strip().partition("\n")[0]


def _opening(source: str) -> tuple[str, str]:
    """Return title and question of a notebook from its first cell."""
    title, _, rest = source.partition("\n")
    question = re.search(r"\*\*(.+?)\*\*", rest, re.DOTALL)
    return title.lstrip("# "), " ".join(question[1].split()) if question else ""


def _index(folder: Path, notebooks: list[str]) -> str:
    """Return the first page: all numbers on it come from the tables in the folder."""
    from nbconvert.filters import markdown2html

    manifest = results.read_manifest(folder)
    measured, comparisons = (metrics.read_csv(folder, name) for name in metrics.FILES[:2])
    alt = results.alt_texts(folder)
    words = INTRODUCTION + "\n".join(
        [
            f"## Results\n{_figure(folder, 'headline')}\n",
            f"{tables.readme_block(measured, comparisons, manifest)}\n",
            "## Notebooks\nExecuted, with all outputs.\n",
            "| chapter | the question it answers |\n| --- | --- |",
            *notebooks,
            "\n## Figures",
            *(f"{_figure(folder, name)}\n" for name in sorted(alt, key=_place) if name != "headline"),
            "## Files\n",
            "Table 1 as [markdown](figures/table1.md), [LaTeX](figures/table1.tex) and "
            "[CSV](figures/table1.csv); all [metrics](metrics.csv) and [comparisons](comparisons.csv); the "
            "[manifest](manifest.json) with parameters, versions, the hash of every file, and of every stage "
            f"behind the numbers. Code: commit {manifest['git']['commit']}.",
        ]
    )
    html = markdown2html(words)
    return html.replace("<table", '<div class="wide"><table').replace("</table>", "</table></div>")


def _place(name: str) -> tuple[bool, str]:
    """Order figures: those of the paper first."""
    return not name.startswith("fig"), name


def _figure(folder: Path, name: str) -> str:
    """Return a figure with its files; its alternative text is its caption, too."""
    words = escape(results.alt_texts(folder)[name])
    width = int.from_bytes((folder / "figures" / f"{name}.png").read_bytes()[16:20], "big") // 2
    links = " · ".join(f'<a href="figures/{name}.{kind}">{kind.upper()}</a>' for kind in ("pdf", "csv"))
    image = f'<div class="wide"><img src="figures/{name}.png" width="{width}" alt="{words}"></div>'
    return f"<figure>{image}<figcaption>{words} {links}</figcaption></figure>"


def _write(path: Path, title: str, body: str) -> None:
    path.write_text(page(title, body), encoding="utf-8", newline="\n")
