"""The static site of a study: its executed notebooks, tables and figures as plain HTML files.

The pages need no server, no script and no network, and a content security policy forbids all three
to whatever text a data set or a student may bring. The same inputs give the same bytes.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from html import escape
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfdistill import metrics, results, runner, runs, tables
from cfdistill.errors import StageError
from cfdistill.params import Params

if TYPE_CHECKING:
    from nbformat import NotebookNode

POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
HOME = "cfdistill"
SHOWN = ("text/html", "image/png", "text/markdown", "text/plain")  # kinds of output; others are scripts
INTRODUCTION = """# cfdistill

Small language models that are trained on a teacher's explanations learn shortcuts: words that often go
with an answer, instead of the words that decide it. *Counterfactual distillation* (Feng et al., EMNLP 2024)
lets the teacher rewrite each question so that another option becomes right, and trains on both. These
pages are one reproducible study of it: data, prompts, filters, training, tests and figures, in notebooks.

"""


def build(params: Params, folder: Path, also: Sequence[Path] = ()) -> Path:
    """Write the site of a finished study into a folder, replacing it, and return its `index.html`.

    Args:
        params: of the study; its executed notebooks and its results folder are read.
        folder: of the site.
        also: results folders, such as those of grids, that get a page of their own.

    Raises:
        StageError: a notebook was not executed, results are missing, or the folder holds other files.
    """
    names = runner.select((), params)
    source, executed = runs.results_folder(params), runner.executed_folder(params)
    missing = [name for name in names if not (executed / f"{name}.ipynb").is_file()]
    if missing:
        raise StageError(
            f"{executed} has no executed notebook {missing[0]}; make it with "
            f"`cfdistill run params/{params.profile}.yaml`"
        )
    manifest = results.read_manifest(source)
    for path in also:
        results.alt_texts(path)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "index.html").is_file():
        raise StageError(f"{folder} holds something else than a site; choose another folder with --out")
    with runs.writing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(metrics.FILES[2]))
        runs.write_text(folder / "style.css", _style())
        links = [_add_results(folder, path) for path in also]
        chapters = [_add_notebook(folder, executed / f"{name}.ipynb") for name in names]
        words = INTRODUCTION + "\n".join(
            [
                _results(folder, "", manifest),
                f"\nFurther results: {', '.join(links)}.\n" if links else "",
                "## Notebooks\nExecuted, with all outputs.\n",
                "| chapter | the question it answers |\n| --- | --- |",
                *chapters,
                "\n## Provenance\n",
                "The [manifest](manifest.json) holds parameters, versions, the hash of every file, and that "
                f"of every stage behind the numbers. Code: commit {manifest['git']['commit']}.",
            ]
        )
        _write(folder / "index.html", HOME, _html(words))
    return folder / "index.html"


def page(title: str, body: str) -> str:
    """Return a whole page; the body must be HTML already."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<link rel="stylesheet" href="style.css">\n</head>\n<body>\n'
        f'<nav><a href="index.html">{HOME}</a></nav>\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )


def _style() -> str:
    """Return the one style sheet of all pages: of highlighted code, and our own."""
    from pygments.formatters import HtmlFormatter

    code: str = HtmlFormatter(style="default").get_style_defs(".highlight")
    return f"{code}\n{Path(__file__).with_suffix('.css').read_text(encoding='utf-8')}"


def _add_results(site: Path, source: Path) -> str:
    """Copy results with a page of their own into the site and return the link to it."""
    name = source.name
    shutil.copytree(source / "figures", site / name / "figures", ignore=shutil.ignore_patterns("*.pdf"))
    for file in _tables(source):
        shutil.copyfile(source / file, site / name / file)
    _write(site / f"{name}.html", name, _html(f"# {name}\n\n{_results(site, f'{name}/')}"))
    return f"[{name}]({name}.html)"


def _add_notebook(site: Path, path: Path) -> str:
    """Add the page of an executed notebook and return its row of the table of chapters."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    title, _, rest = notebook.cells[0].source.partition("\n")
    title, question = title.lstrip("# "), re.search(r"\*\*(.+?)\*\*", rest, re.DOTALL)
    _write(site / f"{path.stem}.html", title, _notebook_html(notebook))
    return f"| [{title}]({path.stem}.html) | {' '.join(question[1].split()) if question else ''} |"


def _notebook_html(notebook: NotebookNode) -> str:
    """Return an executed notebook as HTML without scripts, every image with its alternative text."""
    from nbconvert import HTMLExporter

    section = ""
    notebook.metadata.pop("widgets", None)  # their state would be a script
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.cell_type = "markdown"
            summary = "<details><summary>All parameters of this run</summary>"
            cell.source = f"{summary}\n\n```python\n{cell.source}\n```\n</details>"
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


def _results(site: Path, place: str, manifest: Mapping[str, Any] | None = None) -> str:
    """Return numbers and figures of a results folder in the site as markdown, all from its tables.

    Args:
        site: folder of the site.
        place: of the results in it: "" or a folder's name and "/".
        manifest: of the study, if it is one.
    """
    folder = site / place
    measured, comparisons = (metrics.read_csv(folder, name) for name in metrics.FILES[:2])
    alt = results.alt_texts(folder)
    first, *others = sorted(alt, key=lambda name: (name != "headline", not name.startswith("fig"), name))
    parts = [_figure(site, place, first, alt)]
    if not (folder / "figures" / "table1.md").is_file():  # of what is swept, or trained together
        parts.append(tables.differences_block(comparisons))
        if (folder / metrics.SETTINGS).is_file():
            parts.append(tables.settings_block(metrics.read_csv(folder, metrics.SETTINGS)))
    else:
        parts.append(tables.readme_block(measured, comparisons, manifest))
        kinds = (("markdown", "md"), ("LaTeX", "tex"), ("CSV", "csv"))
        files = ", ".join(f"[{kind}]({place}figures/table1.{end})" for kind, end in kinds)
        parts.append(f"This table as {files}.")
    tidy = ", ".join(f"[{name}]({place}{name})" for name in _tables(folder))
    parts += [f"All numbers: {tidy}.", "## Figures", *(_figure(site, place, name, alt) for name in others)]
    return "\n\n".join(parts)


def _tables(folder: Path) -> list[str]:
    return [name for name in (*metrics.FILES[:2], metrics.SETTINGS) if (folder / name).is_file()]


def _figure(site: Path, place: str, name: str, alt: Mapping[str, str]) -> str:
    """Return a figure with its files as HTML; its alternative text is its caption, too."""
    path = f"{place}figures/{name}"
    width = int.from_bytes((site / f"{path}.png").read_bytes()[16:20], "big") // 2
    kinds = [kind for kind in ("pdf", "csv") if (site / f"{path}.{kind}").is_file()]
    links = " · ".join(f'<a href="{path}.{kind}">{kind.upper()}</a>' for kind in kinds)
    image = f'<img src="{path}.png" width="{width}" alt="{escape(alt[name])}">'
    caption = f"<figcaption>{escape(alt[name])} {links}</figcaption>"
    return f'<figure><div class="wide">{image}</div>{caption}</figure>'


def _html(markdown: str) -> str:
    """Return our own markdown as HTML, with tables that scroll where they are too wide."""
    from nbconvert.filters import markdown2html

    html: str = markdown2html(markdown)
    return html.replace("<table", '<div class="wide"><table').replace("</table>", "</table></div>")


def _write(path: Path, title: str, body: str) -> None:
    path.write_text(page(title, body), encoding="utf-8", newline="\n")
