"""Run by MkDocs while it builds the site: makes openapi.json, and names the files that other links mean."""

import json
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from app.dispatch.client import DispatchClient
from app.main import create_app
from app.messages.slot_map import SlotMap
from app.messages.slots import SlotWriter
from app.settings.settings import Settings

ROOT = Path(__file__).parents[1]
_VARIABLE = re.compile(r"(?<=<code>)TRIMVIT_[A-Z0-9_]+(?=</code>)")
_ERROR = re.compile(r"(?<=\d) ± (?=\d)")
_TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
_CELL = re.compile(r"<t[dh][^>]*>(.*?)</t[dh]>", re.DOTALL)
_SENTENCE = 60  # characters of a cell that is read as text
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\.?/[^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add openapi.json, made from the application."""
    # Nothing is started, so neither the socket nor the slots are opened.
    dispatch = DispatchClient(Path("unused"), SlotWriter(-1, SlotMap.for_queue(1, 1), 0))
    document = create_app(Settings(), dispatch).openapi()
    files.append(File.generated(config, "openapi.json", content=json.dumps(document)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Files outside docs/ are not part of the site: name them. One that does not exist is an error."""
    folder = (Path(config.docs_dir) / page.file.src_uri).parent

    def named(link: re.Match[str]) -> str:
        text, target = link[1], (folder / link[2]).resolve()
        if target.is_relative_to(config.docs_dir):
            return link[0]
        if not target.exists():
            raise PluginError(f"{page.file.src_uri}: there is no {link[2]}")
        path = f"`{target.relative_to(ROOT)}`"
        return path if text.strip("`") in path else f"{text} ({path})"

    return _LINK.sub(named, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Where lines break: long names of variables after an underscore, and no number before its error. Tables
    with sentences in their last column are marked: on a narrow screen, their cells go below each other."""
    html = _TABLE.sub(_marked, html)
    html = _ERROR.sub("\u00a0±\u00a0", html)
    return _VARIABLE.sub(lambda name: name[0].replace("_", "_<wbr>"), html)


def _marked(table: re.Match[str]) -> str:
    heading, *rows = [_CELL.findall(row) for row in table[0].split("</tr>")[:-1]]
    if max((len(row[-1]) for row in rows), default=0) < _SENTENCE:
        return table[0]
    labels = iter(heading * (len(rows) + 1))
    labelled = re.sub(r"<td(?=[ >])", lambda _: f'<td data-label="{_plain(next(labels))}"', table[0])
    return f'<div class="with-text">{labelled}</div>'


def _plain(html: str) -> str:
    return re.sub(r"<[^>]*>|\"", "", html)
