"""What a file is: by its content first, by its name where the content leaves it open."""

from __future__ import annotations

import re
import zipfile
from io import BytesIO

from pipelines.nodes.extract.base import words
from pipelines.nodes.extract.encoding import looks_like_text

FORMAT_BY_EXTENSION = {
    "md": "md",
    "markdown": "md",
    "mdx": "md",
    "html": "html",
    "htm": "html",
    "xhtml": "html",
    "pdf": "pdf",
    "docx": "docx",
    "docm": "docx",
    "xlsx": "xlsx",
    "xlsm": "xlsx",
    "xls": "xls",
    "csv": "csv",
    "tsv": "tsv",
    "txt": "txt",
}
PLAIN_TEXT_EXTENSIONS = words(
    "text log json jsonl ndjson xml yaml yml toml ini cfg conf env properties rst adoc org tex "
    "vtt srt sql graphql proto diff patch py pyi ipynb js mjs jsx ts tsx vue css scss less java kt "
    "scala groovy gradle c h cc cpp hpp cs go rs rb php pl lua r jl swift dart m sh bash zsh fish "
    "ps1 bat dockerfile makefile tf"
)
SUPPORTED_EXTENSIONS: frozenset[str] = frozenset(FORMAT_BY_EXTENSION) | PLAIN_TEXT_EXTENSIONS
"""Lower case, without the dot. Other names are read too when their content is plain text."""

# Text on the outside only: read as plain text they would index base64 and control words.
_UNREADABLE_TEXT = {"eml": "eml", "mht": "mht", "mhtml": "mht", "rtf": "rtf", "ps": "ps"}

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!\x1a\x07", "rar"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x7fELF", "elf program"),
    (b"SQLite format 3\x00", "sqlite database"),
    (b"\xca\xfe\xba\xbe", "java class"),
    (b"ID3", "mp3"),
    (b"OggS", "ogg"),
    (b"fLaC", "flac"),
    (b"\x1aE\xdf\xa3", "matroska video"),
    (b"PAR1", "parquet"),
    (b"wOFF", "font"),
    (b"wOF2", "font"),
    (b"\x00\x01\x00\x00\x00", "font"),
    (b"{\\rtf", "rtf"),
)
_BIFF = re.compile(rb"\x09[\x00\x02\x04\x08][\x04\x06\x08\x10]\x00")
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_OLE_STREAMS = (
    ("encrypted office file", ("EncryptedPackage",)),
    ("msg", ("__properties_version1.0",)),
    ("doc", ("WordDocument",)),
    ("ppt", ("PowerPoint Document",)),
    ("xls", ("Workbook", "Book")),
)
_ZIP_PREFIXES = (("word/", "docx"), ("xl/", "xlsx"), ("ppt/", "pptx"))
_HTML = re.compile(r"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html)\b", re.S)


def sniff(data: bytes, name: str) -> str:
    """The format of a file: `txt`, `md`, `html`, `pdf`, `docx`, `xlsx`, `xls`, `csv`, `tsv`;
    or a word for something that no extractor reads (`png`, `zip`, `binary data`, `empty`, ...).
    """
    extension = name.rpartition(".")[2].lower() if "." in name else ""
    if not data:
        return "empty"
    if data.startswith(_OLE):
        return _sniff_ole(data, extension)
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _sniff_zip(data, extension)
    if b"%PDF-" in data[:1024]:
        return "pdf"
    for magic, kind in _MAGIC:
        if data.startswith(magic) and (kind != "mp3" or not looks_like_text(data)):
            return kind
    if not looks_like_text(data):
        return _sniff_binary(data)
    return _sniff_text(data, extension)


def _sniff_binary(data: bytes) -> str:
    if _BIFF.match(data):
        return "xls"  # BIFF 2 to 5 without a container
    if data[:2] == b"MZ":
        return "windows program"
    if data[:4] == b"RIFF":
        return {b"WEBP": "webp", b"WAVE": "wav", b"AVI ": "avi"}.get(data[8:12], "riff")
    if data[4:8] == b"ftyp":
        return "mp4"
    if data[:2] == b"BM" and int.from_bytes(data[2:6], "little") == len(data):
        return "bmp"
    if data[:2] in (b"\xff\xfb", b"\xff\xf3"):
        return "mp3"
    return "binary data"


def _sniff_text(data: bytes, extension: str) -> str:
    head = data[:4096].replace(b"\x00", b"").decode("latin-1").lstrip("\xef\xbb\xbf\xff\xfe")
    is_html = _HTML.match(head.lower()) is not None
    if extension in _UNREADABLE_TEXT:
        return _UNREADABLE_TEXT[extension]
    known = FORMAT_BY_EXTENSION.get(extension)
    if known in ("html", "md"):
        return known
    if is_html and extension not in PLAIN_TEXT_EXTENSIONS - {"text", "xml"}:
        return "html"
    if known in ("csv", "tsv"):
        return known
    if known in ("xls", "xlsx") and _tabular(head):
        return "csv"  # what many programs call an Excel export
    return "txt"


def _tabular(head: str) -> bool:
    lines = [line for line in head.splitlines() if line.strip()][:10]
    return len(lines) > 1 and any(
        min(line.count(mark) for line in lines[:-1] or lines) > 0 for mark in "\t,;|"
    )


def _sniff_ole(data: bytes, extension: str) -> str:
    kinds = [
        kind
        for kind, streams in _OLE_STREAMS
        if any((stream + "\x00").encode("utf-16-le") in data for stream in streams)
    ]
    # A workbook may embed a Word document and the other way round: then the name decides.
    if extension in kinds:
        return extension
    return kinds[0] if kinds else "ole container"


def _sniff_zip(data: bytes, extension: str) -> str:
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            names = [n.replace("\\", "/").lower() for n in archive.namelist()]
            mimetype = archive.read("mimetype")[:100] if "mimetype" in names else b""
    except (zipfile.BadZipFile, KeyError, OSError, ValueError, NotImplementedError, RuntimeError):
        names, mimetype = [], b""
        for prefix, kind in _ZIP_PREFIXES:  # cut off: the local headers still name the parts
            if prefix.encode() in data:
                return kind
    if b"epub" in mimetype:
        return "epub"
    for part, kind in ((b"text", "odt"), (b"spreadsheet", "ods"), (b"presentation", "odp")):
        if b"opendocument." + part in mimetype:
            return kind
    if "xl/workbook.bin" in names:
        return "xlsb"
    for prefix, kind in _ZIP_PREFIXES:
        if any(n.startswith(prefix) for n in names):
            return kind
    known = FORMAT_BY_EXTENSION.get(extension)
    return known if known in ("docx", "xlsx") else "zip"
