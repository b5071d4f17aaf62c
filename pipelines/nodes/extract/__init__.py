"""Extractors: the bytes of a file become text that knows where it came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module

from pipelines.node import Node, RunContext, node
from pipelines.nodes.extract.base import ExtractOptions, corrupt, encrypted, failure, words
from pipelines.nodes.extract.sniffing import (
    FORMAT_BY_EXTENSION,
    SUPPORTED_EXTENSIONS,
    sniff,
)
from pipelines.types import Blob, ParsedDocument

__all__ = ["SUPPORTED_EXTENSIONS", "TABLES", "Extract", "ExtractOptions", "identify", "sniff"]

TABLES = words("csv tsv xlsx xls")
"""Formats that have rows and columns."""

# Format -> module and function: a format's libraries are imported when its first file comes.
_EXTRACTORS = {
    "txt": ("text", "extract_text"),
    "md": ("markdown", "extract_markdown"),
    "html": ("html", "extract_html"),
    "pdf": ("pdf", "extract_pdf"),
    "docx": ("docx", "extract_docx"),
    "xlsx": ("spreadsheet", "extract_xlsx"),
    "xls": ("spreadsheet", "extract_xls"),
    "csv": ("delimited", "extract_csv"),
    "tsv": ("delimited", "extract_csv"),
}
_EXTENSION_BY_MEDIA_TYPE = {
    "text/markdown": "md",
    "text/html": "html",
    "application/xhtml+xml": "html",
    "text/csv": "csv",
    "text/tab-separated-values": "tsv",
}
_WHOLE = words("pdf docx xlsx xls doc ppt pptx xlsb odt ods odp epub msg")
"""Formats whose files are nothing else: other content under such a name is damage."""


@node("extract.auto")
class Extract(Node[Blob, ParsedDocument], ExtractOptions):
    """Read a file: plain text, Markdown, HTML, PDF, DOCX, XLSX, XLS, CSV or TSV.

    The content decides what a file is, its name only where the content leaves it open; when they
    disagree the document carries a warning. A document always has text: a file without any is an
    error.
    """

    def run(self, value: Blob, ctx: RunContext) -> ParsedDocument:
        """Extract the text.

        Raises:
            ExtractionError: `code` says how the file is bad; retrying changes nothing.
        """
        kind = identify(value)
        module, function = _EXTRACTORS[kind]
        extract: Callable[[bytes, str, ExtractOptions], ParsedDocument] = getattr(
            import_module(f"{__name__}.{module}"), function
        )
        document = extract(value.data, value.name, self)
        expected = FORMAT_BY_EXTENSION.get(value.extension)
        named_otherwise = expected not in (None, kind) or (
            expected is None and kind in _WHOLE and value.extension
        )
        if named_otherwise:
            warning = f"the name says {value.extension}, the content is {kind}: read as {kind}"
            return replace(document, warnings=(warning, *document.warnings))
        return document


def identify(blob: Blob) -> str:
    """The format that a file is read as.

    Raises:
        ExtractionError: `empty_file`, `encrypted`, `corrupt` or `unsupported_file_type`.
    """
    if blob.is_text:
        return "txt"
    name = blob.name
    if not blob.extension and blob.media_type:
        media_type = blob.media_type.partition(";")[0].strip().lower()
        name += "." + _EXTENSION_BY_MEDIA_TYPE.get(media_type, "txt")
    kind = sniff(blob.data, name)
    if kind == "empty":
        raise failure(
            "empty_file", blob.name, "is empty (0 bytes)", "check the file and upload it again"
        )
    if kind == "encrypted office file":
        raise encrypted(blob.name)
    expected = FORMAT_BY_EXTENSION.get(blob.extension, blob.extension)
    unclear = kind in ("txt", "csv", "binary data", "ole container", "zip")
    if expected in _WHOLE and unclear and not (kind == "csv" and expected in ("xls", "xlsx")):
        content = "plain text" if kind in ("txt", "csv") else kind
        raise corrupt(blob.name, f"is not a {expected.upper()} file: its content is {content}")
    if kind not in _EXTRACTORS:
        raise failure(
            "unsupported_file_type",
            blob.name,
            f"is of a type that cannot be read: {kind}",
            f"upload one of {', '.join(sorted(FORMAT_BY_EXTENSION))}, or plain text",
        )
    return kind
