"""PDF, read by PDFium."""

from __future__ import annotations

import re
import threading
import zlib
from collections.abc import Iterator
from typing import Any

from pipelines.nodes.extract.base import (
    DEFAULTS,
    ExtractOptions,
    TextBuilder,
    check_chars,
    corrupt,
    encrypted,
    failure,
    library,
    limit_exceeded,
    no_text,
    places,
)
from pipelines.types import Origin, ParsedDocument, Read

_LOCK = threading.Lock()
"""PDFium may be called by one thread at a time, whatever the document."""
_PASSWORD, _SECURITY = 4, 5  # FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY of fpdfview.h

_LINE_BREAK = re.compile(r"[ \t]*(?:\r\n|\r|\n)")
# PDFium puts U+FFFE (older: U+0002) where a word was cut at the end of a line.
_CUT_WORD = re.compile("(\\w*)[\ufffe\x02\u00ad][ \t\n]*(\\w*)")
_STRAY_MARK = re.compile("[\ufffe\x02\u00ad]")
_WORD = re.compile(r"[^\W\d_]+")
_LIGATURES = str.maketrans(
    {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"}
)
_STREAM = re.compile(rb"stream\r?\n")
_FLATE = re.compile(rb"/(?:FlateDecode|Fl)\b")
_MAX_DEFLATE_RATIO = 1032


def extract_pdf(data: bytes, name: str, options: ExtractOptions = DEFAULTS) -> ParsedDocument:
    """The text of each page, a section per page; pages without text are named in a warning.

    Words that were hyphenated at a line's end are put together again.

    Raises:
        ExtractionError: `scanned`, no page has text but some have images; `no_text`, `encrypted`,
            `corrupt`, `limit_exceeded`.
    """
    _check_streams(data, name, options)
    texts, broken, has_images = _read(data, name, options)
    words = frozenset[str]()
    if any(_STRAY_MARK.search(text) for text in texts):
        words = frozenset(w.lower() for text in texts for w in _WORD.findall(text))
    builder = TextBuilder(name, options)
    empty = []
    for page, raw in enumerate(texts, 1):
        text = tidy(raw, words)
        if text:
            builder.add(text, Origin(page=page, page_end=page), opens_section=True)
        elif page not in broken:
            empty.append(page)
    builder.read = Read(pages=len(texts), empty_pages=tuple(empty), damaged_pages=tuple(broken))
    if not builder:
        raise _without_text(name, len(texts), broken, has_images)
    if empty:
        builder.warnings.append(f"no text on {places('page', empty)} of {len(texts)}")
    if broken:
        builder.warnings.append(f"damaged and left out: {places('page', broken)} of {len(texts)}")
    return builder.document("application/pdf", library("pypdfium2"))


def tidy(text: str, words: frozenset[str] = frozenset()) -> str:
    """Line breaks as LF, ligatures as letters, cut words whole; stripped.

    Args:
        words: all words of the document, lower case. Where PDFium took away a hyphen, two halves
            that are both words get it back (`privacy-preserving`); others are joined
            (`im` and `portant`), and so is what the document elsewhere writes as one word.
    """

    def whole(match: re.Match[str]) -> str:
        left, right = match.group(1), match.group(2)
        if not left or not right:
            return left + right
        joined = (left + right).lower()
        both_words = min(len(left), len(right)) > 2 and {left.lower(), right.lower()} <= words
        return f"{left}-{right}" if both_words and joined not in words else left + right

    text = _LINE_BREAK.sub("\n", text)
    text = _CUT_WORD.sub(whole, text)
    return _STRAY_MARK.sub("", text).translate(_LIGATURES).strip()


def _without_text(name: str, pages: int, broken: list[int], has_images: bool) -> Exception:
    if len(broken) == pages and pages:
        return corrupt(name, f"has {pages} pages and none can be read")
    if has_images:
        return failure(
            "scanned",
            name,
            f"is a scan: images and no text layer on {places('page', range(1, pages + 1))}",
            "run it through OCR and upload the result",
        )
    return no_text(name, f"has {pages} pages without text")


def _read(data: bytes, name: str, options: ExtractOptions) -> tuple[list[str], list[int], bool]:
    """Texts of all pages, 1-based numbers of broken pages, and whether a page has an image.

    The lock is let go between pages, so that a long file does not hold up a short one.
    """
    import pypdfium2

    with _LOCK:
        try:
            document = pypdfium2.PdfDocument(data)
        except pypdfium2.PdfiumError as exc:
            if exc.err_code in (_PASSWORD, _SECURITY):
                raise encrypted(name) from exc
            raise corrupt(name, f"is not a readable PDF ({exc})") from exc
    texts: list[str] = []
    broken: list[int] = []
    has_images = False
    look_for_images = True  # until it is known whether the file is a scan
    length = 0
    try:
        with _LOCK:
            count = len(document)
        if count > options.max_pages:
            raise limit_exceeded(name, f"has {count:,} pages", "max_pages", options.max_pages)
        for index in range(count):
            with _LOCK:
                try:
                    text, image = _read_page(document, index, look_for_images)
                except pypdfium2.PdfiumError:
                    text, image = "", False
                    broken.append(index + 1)
            texts.append(text)
            has_images = has_images or image
            look_for_images = look_for_images and not image and not text.strip()
            length += len(text)
            check_chars(length, name, options)
    finally:
        with _LOCK:
            document.close()
    return texts, broken, has_images


def _read_page(document: Any, index: int, look_for_images: bool) -> tuple[str, bool]:
    import pypdfium2.raw

    page = document[index]
    try:
        textpage = page.get_textpage()
        try:
            text = str(textpage.get_text_range())
        finally:
            textpage.close()
        if text.strip() or not look_for_images:
            return text, False
        images = page.get_objects(filter=[pypdfium2.raw.FPDF_PAGEOBJ_IMAGE], max_depth=5)
        return text, next(iter(images), None) is not None
    finally:
        page.close()


def _check_streams(data: bytes, name: str, options: ExtractOptions) -> None:
    """Refuse a stream that inflates to more than `max_pdf_stream_bytes`.

    Only streams that could are looked at: deflate packs 1032 to 1 at best.
    """
    limit = options.max_pdf_stream_bytes
    for dictionary, start, end in _flate_streams(data):
        layers = len(_FLATE.findall(dictionary))
        if (end - start) * _MAX_DEFLATE_RATIO**layers <= limit:
            continue
        size = _inflated_size(data[start:end], layers, limit)
        if size > limit:
            raise limit_exceeded(
                name,
                f"has a stream that unpacks to more than {limit:,} bytes",
                "max_pdf_stream_bytes",
                limit,
            )


def _flate_streams(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(dictionary, start, end) of the deflated streams that are not images."""
    at = 0
    while match := _STREAM.search(data, at):
        end = data.find(b"endstream", match.end())
        end = len(data) if end < 0 else end
        dictionary = data[max(0, match.start() - 1000) : match.start()]
        dictionary = dictionary[dictionary.rfind(b" obj") + 1 :]
        if _FLATE.search(dictionary) and not re.search(rb"/Subtype\s*/Image\b", dictionary):
            yield dictionary, match.end(), end
        at = end


def _inflated_size(packed: bytes, layers: int, limit: int) -> int:
    """Bytes after `layers` times inflating; counting stops above `limit`."""
    for layer in range(layers):
        inflate = zlib.decompressobj()
        parts: list[bytes] = []
        size = 0
        try:
            while packed and size <= limit and not inflate.eof:
                part = inflate.decompress(packed, 1 << 20)
                packed = inflate.unconsumed_tail
                size += len(part)
                if layer < layers - 1:
                    parts.append(part)
                if not part and not packed:
                    break
        except zlib.error:  # PDFium reads what came before the damage
            pass
        if layer == layers - 1 or size > limit:
            return size
        packed = b"".join(parts)
    return 0
