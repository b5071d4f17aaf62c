"""What the styles and numbering parts of a DOCX file say about its paragraphs.

Format: ECMA-376 part 1, 17.7 (styles) and 17.9 (numbering).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lxml import etree

_HEADING_NAME = re.compile(
    r"(?:heading|标题|標題|überschrift|titre|título)\s*([1-9])", re.IGNORECASE
)
_PLACEHOLDER = re.compile(r"%([1-9])")
_MAX_BASES = 20
_ROMAN = (
    *((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l")),
    *((40, "xl"), (10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i")),
)

Place = tuple[str, int]
"""numId and 0-based level"""


def local(element: etree._Element) -> str:
    """The name without its namespace; empty for comments and the like."""
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def child(element: etree._Element | None, name: str) -> etree._Element | None:
    """The first child of that local name."""
    if element is None:
        return None
    return next((e for e in element if local(e) == name), None)


def attribute(element: etree._Element | None, name: str) -> str | None:
    """The value of the attribute of that local name."""
    if element is None:
        return None
    return next(
        (str(v) for k, v in element.attrib.items() if str(k).rpartition("}")[2] == name), None
    )


@dataclass(frozen=True, slots=True)
class ParagraphStyle:
    """What a paragraph is: `outline` 0 for a title, 1 to 9 for headings, None for text."""

    outline: int | None = None
    numbering: Place | None = None


class Styles:
    """Looks up paragraphs in the styles part."""

    def __init__(self, part: etree._Element | None) -> None:
        self._elements: dict[str, etree._Element] = {}
        self._known: dict[str, ParagraphStyle] = {}
        for element in part if part is not None else ():
            style_id = attribute(element, "styleId")
            if local(element) == "style" and style_id:
                self._elements[style_id] = element

    def of(self, paragraph: etree._Element) -> ParagraphStyle:
        """The paragraph's own properties, then those of its style and of what that is based on."""
        properties = child(paragraph, "pPr")
        style_id = attribute(child(properties, "pStyle"), "val")
        style = self._style(style_id) if style_id else ParagraphStyle()
        own = _properties(properties)
        outline = style.outline if own.outline is None else own.outline
        numbering = style.numbering if own.numbering is None else own.numbering
        return ParagraphStyle(None if outline == 10 else outline, numbering)

    def _style(self, style_id: str) -> ParagraphStyle:
        if style_id not in self._known:
            outline: int | None = None
            numbering: Place | None = None
            current: str | None = style_id
            for _ in range(_MAX_BASES):
                element = self._elements.get(current or "")
                name = attribute(child(element, "name"), "val") or current or ""
                found = _properties(child(element, "pPr"))
                if outline is None:
                    outline = found.outline
                if outline is None:
                    outline = _named_outline(name)
                if numbering is None:
                    numbering = found.numbering
                current = attribute(child(element, "basedOn"), "val")
                if not current:
                    break
            self._known[style_id] = ParagraphStyle(outline, numbering)
        return self._known[style_id]


def _named_outline(name: str) -> int | None:
    match = _HEADING_NAME.fullmatch(name.strip())
    if match:
        return int(match.group(1))
    return 0 if name.strip().lower() == "title" else None


def _properties(properties: etree._Element | None) -> ParagraphStyle:
    """`outline` 10 means: explicitly body text."""
    level = attribute(child(properties, "outlineLvl"), "val")
    outline = int(level) + 1 if level and level.isdigit() else None
    numbering = child(properties, "numPr")
    number_id = attribute(child(numbering, "numId"), "val")
    depth = attribute(child(numbering, "ilvl"), "val") or "0"
    place = (number_id, min(int(depth), 8)) if number_id and depth.isdigit() else None
    return ParagraphStyle(outline, place)


@dataclass(frozen=True, slots=True)
class _Level:
    form: str
    text: str
    start: int


class Numbering:
    """Counts list items as Word does, for the paragraphs in their order."""

    def __init__(self, part: etree._Element | None) -> None:
        self._lists: dict[str, tuple[str, dict[int, _Level]]] = {}
        self._counts: dict[str, list[int | None]] = {}
        abstract: dict[str, dict[int, _Level]] = {}
        for element in part if part is not None else ():
            if local(element) == "abstractNum":
                abstract[attribute(element, "abstractNumId") or ""] = _levels(element)
        for element in part if part is not None else ():
            if local(element) != "num":
                continue
            number_id = attribute(element, "numId") or ""
            base = attribute(child(element, "abstractNumId"), "val") or ""
            levels = dict(abstract.get(base, {}))
            overrides = [e for e in element if local(e) == "lvlOverride"]
            for override in overrides:
                levels |= _overridden(override, levels)
            # A list with its own start counts for itself, others go on counting together.
            self._lists[number_id] = (f"num {number_id}" if overrides else base, levels)

    def label(self, place: Place | None) -> str:
        """`-` for a bullet, else the number as Word shows it (`2.1`, `(a)`); empty for no list."""
        if place is None or place[0] not in self._lists:
            return ""
        counter, levels = self._lists[place[0]]
        depth = place[1]
        level = levels.get(depth)
        if level is None or level.form == "none":
            return ""
        if level.form == "bullet":
            return "-"
        counts = self._counts.setdefault(counter, [None] * 9)
        current = counts[depth]
        counts[depth] = level.start if current is None else current + 1
        counts[depth + 1 :] = [None] * (8 - depth)

        def number(match: re.Match[str]) -> str:
            at = int(match.group(1)) - 1
            other = levels.get(at, level)
            count = counts[at]
            return _formatted(other.start if count is None else count, other.form)

        return _PLACEHOLDER.sub(number, level.text).strip()


def _levels(element: etree._Element) -> dict[int, _Level]:
    found = {}
    for level in element:
        depth = attribute(level, "ilvl") or ""
        if local(level) == "lvl" and depth.isdigit():
            start = attribute(child(level, "start"), "val") or ""
            found[int(depth)] = _Level(
                attribute(child(level, "numFmt"), "val") or "decimal",
                attribute(child(level, "lvlText"), "val") or "",
                int(start) if start.isdigit() else 0,
            )
    return found


def _overridden(override: etree._Element, levels: dict[int, _Level]) -> dict[int, _Level]:
    depth = attribute(override, "ilvl") or ""
    start = attribute(child(override, "startOverride"), "val") or ""
    changed = _levels(override)
    if depth.isdigit() and start.isdigit():
        level = changed.get(int(depth)) or levels.get(int(depth))
        if level:
            changed[int(depth)] = _Level(level.form, level.text, int(start))
    return changed


def _formatted(number: int, form: str) -> str:
    match form:
        case "lowerLetter" | "upperLetter":
            letters = chr(97 + (number - 1) % 26) * ((number - 1) // 26 % 10 + 1)
            return letters if form == "lowerLetter" else letters.upper()
        case "lowerRoman" | "upperRoman":
            roman = _roman(number)
            return roman if form == "lowerRoman" else roman.upper()
        case "decimalZero":
            return f"{number:02}"
        case "chineseCounting" | "chineseCountingThousand" | "japaneseCounting":
            return _chinese(number)
    return str(number)


def _roman(number: int) -> str:
    if not 0 < number < 4000:
        return str(number)
    out = ""
    for value, letters in _ROMAN:
        out += letters * (number // value)
        number %= value
    return out


def _chinese(number: int) -> str:
    digits = "零一二三四五六七八九"
    if not 0 <= number < 100:
        return str(number)
    tens, ones = divmod(number, 10)
    if not tens:
        return digits[ones]
    return ("" if tens == 1 else digits[tens]) + "十" + (digits[ones] if ones else "")
