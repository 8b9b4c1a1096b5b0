"""The static site of a study: plain HTML; equal inputs give equal bytes, and no text brings a script."""

import re
import shutil
from collections.abc import Sequence
from html import escape
from pathlib import Path

from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from nbformat import NotebookNode, read

from cfdistill import files
from cfdistill.errors import StageError
from cfdistill.evaluate import metrics
from cfdistill.params import Params
from cfdistill.show import tables
from cfdistill.study import results, run

SHOWN = ("text/html", "image/png", "text/markdown", "text/plain")  # kinds of output; others are scripts


def build(params: Params, folder: Path, also: Sequence[Path] = ()) -> Path:
    """Write the site of a finished study, with a page for each results folder in `also`; return its index."""
    source, executed = results.folder(params), run.executed_folder(params)
    notebooks = [executed / f"{name}.ipynb" for name in run.select((), params)]
    if missing := [path.stem for path in notebooks if not path.is_file()]:
        command = f"`cfdistill run params/{params.profile}.yaml`"
        raise StageError(f"{executed} has no executed notebook {missing[0]}; make it with {command}")
    for path in (source, *also):
        results.alt_texts(path)  # there before anything is deleted
    with files.writing(folder):
        files.empty(folder, "site", params.profile)
        files.write_text(folder / "style.css", _template("css"))
        links = []
        for path in also:
            body = markdown2html(f"# {path.name}\n\n{_results(path, folder, f'{path.name}/')}")
            links.append(_write(folder / f"{path.name}.html", path.name, body))
        chapters = "\n".join(_add_notebook(folder, path) for path in notebooks)
        further = f"Further results: {', '.join(links)}." if links else ""
        facts = {"results": _results(source, folder), "further": further, "chapters": chapters}
        _write(folder / "index.html", "cfdistill", markdown2html(_template("md").format(**facts)))
    return folder / "index.html"


def _template(kind: str) -> str:
    """Return the text of `site.css`, `site.html` (what is around every page) or `site.md` (the home page)."""
    return Path(__file__).with_suffix(f".{kind}").read_text(encoding="utf-8")


def _results(source: Path, site: Path, place: str = "") -> str:
    """Copy results into a place of the site ("" or a folder's name and "/"); return them as markdown."""
    folder = site / place
    shutil.copytree(source / "figures", folder / "figures", ignore=shutil.ignore_patterns("*.pdf"))
    numbers = (*metrics.FILES[:2], "manifest.json")
    kept = [name for name in numbers if (source / name).is_file()]
    for name in kept:
        shutil.copyfile(source / name, folder / name)
    alt = results.alt_texts(source)
    names = sorted(alt, key=lambda name: (name != "headline", not name.startswith("fig"), name))
    shown = [_figure(site, f"{place}figures/{name}", alt[name]) for name in names]
    table = source / "figures" / "table1.md"  # there is none of what is swept, or trained together
    parts = [*shown[:1], table.read_text(encoding="utf-8") if table.is_file() else ""]
    parts += [tables.differences(metrics.read_csv(source, metrics.FILES[1]))]
    parts += [f"All numbers: {', '.join(f'[{name}]({place}{name})' for name in kept)}.", "## Figures"]
    return "\n\n".join(parts + shown[1:])


def _figure(site: Path, path: str, alt: str) -> str:
    """Return a figure as HTML; its alternative text is its caption, too."""
    words, header = escape(" ".join(alt.split())), (site / f"{path}.png").read_bytes()[:20]
    image = f'<img src="{path}.png" width="{int.from_bytes(header[16:], "big") // 2}" alt="{words}">'
    caption = f'<figcaption>{words} <a href="{path}.csv">CSV</a></figcaption>'
    return f'<figure><div class="wide">{image}</div>{caption}</figure>'


def _add_notebook(site: Path, path: Path) -> str:
    """Add the page of an executed notebook and return its row of the table of chapters."""
    notebook = read(path, as_version=4)
    title, _, rest = notebook.cells[0].source.partition("\n")
    title, question = title.lstrip("# "), re.search(r"\*\*(.+?)\*\*", rest, re.DOTALL)
    link = _write(site / f"{path.stem}.html", title, _notebook_html(notebook))
    return f"| {link} | {' '.join(question[1].split()) if question else ''} |"


def _notebook_html(notebook: NotebookNode) -> str:
    """Return an executed notebook as HTML without scripts, every image with its alternative text."""
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
        shown = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]  # progress
        cell.update({"outputs": shown} if "outputs" in cell else {})
        for output in shown:
            if "data" in output:
                output.data = {kind: output.data[kind] for kind in SHOWN if kind in output.data}
            if "image/png" in output.get("data", {}):
                facts = output.metadata.setdefault("image/png", {})
                facts.setdefault("alt", f"Figure of the section {section}")
    exporter = HTMLExporter(template_name="basic")
    exporter.register_preprocessor("nbconvert.preprocessors.CoalesceStreamsPreprocessor", enabled=True)
    return str(exporter.from_notebook_node(notebook)[0])


def _write(path: Path, title: str, body: str) -> str:
    """Write a page and return a link to it as markdown."""
    files.write_text(path, _template("html").format(title=escape(title), body=body))
    return f"[{title}]({path.name})"
