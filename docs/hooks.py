"""What the site shows beside docs/: results, notebooks and the help of every command; and a last check.

Runs inside mkdocs. Pages made here are never typed and never stale: the results lie in results/, drawn from
the ledger (`make pages`); the help is the parser's own. The check reads the finished HTML: every link within
the site must find its page and anchor, and no page may load a script, style, font or picture from elsewhere.
"""

from __future__ import annotations

import json
import logging
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
TABLES = "benchmark", "table", "table-none"
RESULTS = [ROOT / "results" / folder for folder in (*TABLES, "ablations")]
RENAMED = {f"results/{t}/benchmark.md": f"results/{t}/report.md" for t in TABLES}  # beside benchmark.html
log = logging.getLogger("mkdocs.hooks.dia")


def on_files(files: Files, config: Any) -> Files:
    """Adds results, notebooks as pages, and the commands."""
    for path in sorted(p for folder in RESULTS for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, RENAMED.get(name, name), abs_src_path=str(path)))
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        name = path.relative_to(ROOT / "docs").with_suffix(".md").as_posix()
        files.append(File.generated(config, name, content=notebook(path)))
    files.append(File.generated(config, "reference/cli.md", content=cli()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fills in the README's tables."""
    markdown = re.sub(r"<!-- README:(\w+) -->", lambda m: section(m[1]), markdown)
    return markdown


def section(name: str) -> str:
    """What stands between two marks of the README, where it is drawn from the ledger."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return readme.split(f"<!-- {name}:begin -->")[1].split(f"<!-- {name}:end -->")[0]


def notebook(path: Path) -> str:
    """A notebook as Markdown: its texts, code and kept outputs."""
    cells = [f"[The notebook itself]({path.name}), to run or change.\n"]
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            cells.append(source)
            continue
        cells.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                cells.append(f"![output](data:image/png;base64,{''.join(data['image/png']).strip()})")
            elif text := "".join(output.get("text") or data.get("text/plain") or "").rstrip():
                cells.append(f"```text\n{text}\n```")
    title = cells.pop(1) if len(cells) > 1 and cells[1].startswith("# ") else f"# {path.stem}"
    return "\n\n".join([title, *cells])


def cli() -> str:
    """The help of `dia` and of every command."""
    os.environ["COLUMNS"] = "80"
    os.environ.pop("DIA_DATA", None)
    from dia.cli.main import COMMANDS, command_parser, summary, top_parser

    top = top_parser().format_help().rstrip()
    parts = [
        "# Command line\n\nWhat `dia --help` and `dia COMMAND --help` print. The settings of `dia fit` "
        "depend on `--method` and `--preset`; below they are those of `dia+` in `cpu`."
    ]
    parts.append(f"## dia\n\n```text\n{top}\n```")
    for name in COMMANDS:
        text = command_parser(name).format_help().rstrip()
        parts.append(f"## dia {name}\n\n{summary(name)}.\n\n```text\n{text}\n```")
    return "\n\n".join(parts)


LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}


class Page(HTMLParser):
    """The anchors of a page, where it leads, and what it loads."""

    def __init__(self, html: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collects."""
        a = {k: v or "" for k, v in attrs}
        self.anchors |= {a[k] for k in ("id", "name") if k in a}
        if tag == "a" and "href" in a:
            self.links.append(a["href"])
        if tag == "link" and a.get("rel") != "canonical":
            self.loaded.append(a["href"])
        if LOADING.get(tag) in a:
            self.loaded.append(a[LOADING[tag]])


def on_post_build(config: Any) -> None:
    """Warns, and with that fails a strict build, of broken links and of what comes from outside."""
    site = Path(config["site_dir"])
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        if path.name == "404.html":  # served from anywhere: its links are absolute
            continue
        where = path.relative_to(site)
        for link in page.loaded:
            if urlsplit(link).scheme not in ("", "data") or urlsplit(link).netloc:
                log.warning("%s loads %s", where, link)
        for link in page.links + page.loaded:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                log.warning("%s leads to %s, which is not there", where, link)
            elif url.fragment and target in pages and unquote(url.fragment) not in pages[target].anchors:
                log.warning("%s leads to %s, which has no such anchor", where, link)
    for path in sorted(site.rglob("*.css")):
        for link in re.findall(r"url\(['\"]?(https?:[^)'\"]+)", path.read_text(encoding="utf-8")):
            log.warning("%s loads %s", path.relative_to(site), link)
