"""HTML, parsed by lexbor (as browsers do) and written out block by block."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipelines.nodes.extract.base import (
    DEFAULTS,
    ExtractOptions,
    HeadingPath,
    TextBuilder,
    library,
    markdown_table,
    no_text,
    one_line,
    words,
)
from pipelines.nodes.extract.encoding import decode
from pipelines.types import Origin, ParsedDocument

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

_META_CHARSET = re.compile(
    rb"""<meta[^>]*?charset\s*=\s*["']?\s*([\w.:-]+)|<\?xml[^>]*?encoding=["']([\w.:-]+)""", re.I
)
_DROPPED = words(
    "head script style noscript template svg iframe object canvas audio video datalist "
    "ix:header ix:hidden"
)
_BLOCKS = words(
    "address article aside blockquote body caption center dd details dialog dir div dl dt fieldset "
    "figcaption figure footer form h1 h2 h3 h4 h5 h6 header hr html legend li main menu nav ol "
    "optgroup option p pre search section select summary table tbody td tfoot th thead tr "
    "ul"
)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_LISTS = frozenset({"ul", "ol", "menu", "dir"})
_ENDS_WITHOUT_TAG = words(
    "area base br col embed hr img input link meta param source track wbr p li dt dd tr td th "
    "thead tbody tfoot option optgroup colgroup caption html head body rt rp"
)
_MAX_DEPTH = (16, 256)  # of inline elements, which mean nothing here, and of blocks
_MAX_ATTRIBUTES = 200
_LONG_TAG = 2_000
_QUOTED = re.compile(r""""[^"]*"|'[^']*'""")
_TAG = re.compile(  # every branch runs on to the end when its own end is missing: linear time
    r"<!--.*?(?:-->|\Z)"
    r"|<(?P<raw>script|style|noscript|template|textarea|title|xmp|iframe)\b"
    r".*?(?:</(?P=raw)\b[^>]*>?|\Z)"
    r"|<(?P<end>/?)(?P<tag>[a-z][^\s/<>]*)"
    r"""(?P<attributes>(?:[^"'>]+|"[^"]*"|'[^']*')*+)>?""",
    re.IGNORECASE | re.DOTALL,
)
_BLANKS = re.compile("[ \t\n\r\f\xa0]+")
_HIDDEN = re.compile(r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*hidden)", re.I)
_LONG_CELL = 1_000
_MAX_SPAN = 100
_REPEATED_CHARS = 200


def extract_html(data: bytes, name: str, options: ExtractOptions = DEFAULTS) -> ParsedDocument:
    """The visible text, a line per block; a block's origin is its heading path.

    List items begin with `- `, data tables become Markdown tables (tables that merely lay out the
    page are read through), `pre` is kept as it is, links are their text, images their `alt`.
    Scripts, styles and what is hidden by its own attributes are left out. The page title stands
    first unless it repeats the first heading. Encoding: byte order mark, UTF-8, the declared one,
    then as for plain text.

    Raises:
        ExtractionError: `no_text` or `limit_exceeded`.
    """
    from selectolax.lexbor import LexborHTMLParser

    declared = _META_CHARSET.search(data[:4096])
    charset = (declared.group(1) or declared.group(2)).decode("ascii") if declared else None
    decoded = decode(data, charset)
    if not decoded.text.strip():
        raise no_text(name, "holds nothing but white space")
    tree = LexborHTMLParser(flatten(decoded.text))
    builder = TextBuilder(name, options)
    if decoded.warning:
        builder.warnings.append(decoded.warning)
    title = _title(tree)
    if title:
        builder.add(title)
    if tree.root is not None:
        _Writer(builder).write(tree.root)
    return builder.document("text/html", library("selectolax"))


def flatten(html: str) -> str:
    """HTML in which at most 256 block and 16 inline elements are open at once; all text stays.

    For most tags the parser looks at all open elements and for an attribute at all others: its
    time grows with their square, 100,000 nested `div` take 11 s. And it opens an inline element
    that is never closed anew in every block: 60,000 such `font` take 5 GB. Tags that stand deeper
    go, blocks leave a line break; a tag with more than 200 attributes loses them.
    """
    still_open: list[tuple[str, bool]] = []  # tag, and whether it was taken out
    count: Counter[str] = Counter()
    depth = [0, 0]  # of inline elements, of blocks

    def shallow(match: re.Match[str]) -> str:
        if not match["tag"]:  # a comment, a script
            return match.group()
        tag, text = match["tag"].lower(), match.group()
        if len(text) > _LONG_TAG and _attribute_count(match["attributes"]) > _MAX_ATTRIBUTES:
            text = f"<{match['end']}{tag}>"
        is_block = tag in _BLOCKS
        too_deep = depth[is_block] >= _MAX_DEPTH[is_block]
        if tag in _ENDS_WITHOUT_TAG:
            return "<br>" if is_block and too_deep else text
        if not match["end"]:
            still_open.append((tag, too_deep))
            count[tag] += 1
            depth[is_block] += 1
        elif count[tag]:
            name = ""
            while name != tag:  # what was left open inside of it ends with it
                name, too_deep = still_open.pop()
                count[name] -= 1
                depth[name in _BLOCKS] -= 1
        else:
            too_deep = False
        return ("<br>" if is_block else "") if too_deep else text

    return _TAG.sub(shallow, html)


def _attribute_count(attributes: str) -> int:
    bare = _QUOTED.sub("", attributes)
    return max(len(re.split(r"[\s/]+", bare)), bare.count("="))


def _title(tree: object) -> str:
    title = tree.css_first("title")  # type: ignore[attr-defined]
    heading = tree.css_first("h1")  # type: ignore[attr-defined]
    text = " ".join(title.text().split()) if title is not None else ""
    first = " ".join(heading.text().split()) if heading is not None else ""
    return "" if first and first in text else text


def _is_hidden(node: LexborNode) -> bool:
    attributes = node.attributes
    return "hidden" in attributes or _HIDDEN.search(attributes.get("style") or "") is not None


def _events(root: LexborNode) -> Iterator[tuple[str, LexborNode, bool]]:
    """(tag, node, entering) of the visible nodes below and including `root`, without recursion.

    Send a true value after an element was entered to leave its content out.
    """
    node: LexborNode | None = root
    while node is not None:
        tag = node.tag or ""
        leaf = tag.startswith("-") or tag.startswith("!")
        skip = tag in _DROPPED or (not leaf and _is_hidden(node))
        inner = None
        if not skip:
            skip = bool((yield tag, node, True))
            inner = None if skip or leaf else node.child
            if inner is None and not leaf:
                yield tag, node, False
        if inner is not None:
            node = inner
            continue
        while node is not None and node.mem_id != root.mem_id and node.next is None:
            node = node.parent
            if node is not None:
                yield node.tag or "", node, False
        if node is None or node.mem_id == root.mem_id:
            return
        node = node.next


class _Writer:
    """Collects inline text and hands it to the builder at each block's border."""

    def __init__(self, builder: TextBuilder) -> None:
        self._builder = builder
        self._headings = HeadingPath()
        self._inline: list[str] = []
        self._bullet = ""
        self._lists = 0
        self._pre = 0

    def write(self, root: LexborNode) -> None:
        events = _events(root)
        answer: bool | None = None
        while True:
            try:
                tag, node, entering = events.send(answer)  # type: ignore[attr-defined]
            except StopIteration:
                break
            answer = self._enter(tag, node) if entering else self._leave(tag)
        self._flush()

    def _enter(self, tag: str, node: LexborNode) -> bool:
        """True: the node's content is done with."""
        if tag == "-text":
            text = node.text_content or ""
            self._inline.append(text if self._pre else _BLANKS.sub(" ", text))
        elif tag == "br":
            self._inline.append("\n")
        elif tag == "img":
            self._inline.append(f" {node.attributes.get('alt') or ''} ")
        elif tag in _BLOCKS:
            self._flush()
            if tag == "table":
                return self._table(node)
            if tag in _LISTS:
                self._lists += 1
            elif tag == "li":
                self._bullet = "  " * max(0, self._lists - 1) + "- "
            elif tag == "pre":
                self._pre += 1
        return False

    def _leave(self, tag: str) -> bool:
        if tag in _HEADINGS:
            text = one_line(_BLANKS.sub(" ", "".join(self._inline)))
            if text:
                self._headings.push(_HEADINGS[tag], text)
        if tag in _BLOCKS:
            self._flush()
            if tag in _LISTS:
                self._lists -= 1
            elif tag == "li":
                self._bullet = ""
            elif tag == "pre":
                self._pre -= 1
        return False

    def _flush(self) -> None:
        text = "".join(self._inline)
        self._inline = []
        if self._pre:
            text = text.strip("\r\n").rstrip()
        else:
            lines = [_BLANKS.sub(" ", line).strip() for line in text.split("\n")]
            text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
        if text:
            self._builder.add(self._bullet + text, Origin(headings=self._headings.path))
            self._bullet = ""

    def _table(self, node: LexborNode) -> bool:
        caption, grid = data_table(node)
        if not grid:
            return False
        origin = Origin(headings=self._headings.path)
        self._builder.add(caption, origin)
        self._builder.add(markdown_table(grid), origin)
        return True


def data_table(table: LexborNode) -> tuple[str, list[list[str]]]:
    """Caption and cells of a table; no cells when it is there for the layout.

    A data table has no tables or headings inside, at least two rows and two columns with text,
    and no cell of more than 1,000 characters. A cell that spans rows is repeated in each of them
    if it is short; one that spans columns leaves the further ones empty.
    """
    caption: list[str] = []
    grid: list[list[str]] = []
    spanning: dict[int, tuple[int, str]] = {}  # column -> (rows still to fill, text)
    cell: list[str] | None = None
    spans = (1, 1)
    for tag, node, entering in _events(table):
        if entering and (tag in _HEADINGS or (tag == "table" and node.mem_id != table.mem_id)):
            return "", []
        if tag == "caption":
            cell = caption if entering else None
        elif tag == "tr":
            if entering:
                grid.append([])
            elif grid:
                _fill(grid[-1], spanning, max(spanning, default=-1) + 1)
        elif tag in ("thead", "tbody", "tfoot"):
            spanning.clear()  # a cell never reaches into the next group of rows
        elif tag in ("td", "th"):
            if entering:
                cell, spans = [], (_span(node, "rowspan"), _span(node, "colspan"))
            elif cell is not None and grid:
                text = " ".join("".join(cell).split())
                if len(text) > _LONG_CELL:
                    return "", []
                _place(grid[-1], spanning, text, *spans)
                cell = None
        elif cell is not None and entering:
            if tag == "-text":
                cell.append(node.text_content or "")
            elif tag == "img":
                cell.append(f" {node.attributes.get('alt') or ''} ")
        if cell is not None and (tag in _BLOCKS or tag == "br"):
            cell.append(" ")
    columns = {i for row in grid for i, text in enumerate(row) if text}
    if len(columns) < 2 or sum(any(row) for row in grid) < 2:
        return "", []
    return " ".join("".join(caption).split()), grid


def _place(
    row: list[str], spanning: dict[int, tuple[int, str]], text: str, rows: int, columns: int
) -> None:
    """Append a cell to its row, after the cells of earlier rows that reach down into it."""
    _fill(row, spanning, 0)
    for i in range(columns):
        if rows > 1:
            short = len(text) <= _REPEATED_CHARS and not i
            spanning[len(row)] = (rows - 1, text if short else "")
        row.append("" if i else text)


def _fill(row: list[str], spanning: dict[int, tuple[int, str]], width: int) -> None:
    """Append the cells that reach down to the row's end, at least up to `width` cells."""
    while len(row) in spanning or len(row) < width:
        column = len(row)
        left, above = spanning.pop(column, (0, ""))
        row.append(above)
        if left > 1:
            spanning[column] = (left - 1, above)


def _span(node: LexborNode, name: str) -> int:
    value = node.attributes.get(name) or "1"
    number = int(value) if value.isascii() and value.isdigit() and len(value) < 9 else 1
    if name == "rowspan" and number == 0:  # to the end of the table
        return 1 << 16
    return max(1, number) if name == "rowspan" else min(max(1, number), _MAX_SPAN)
