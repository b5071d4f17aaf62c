"""Bytes to text: which encoding a text file is in."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

_SAMPLE_BYTES = 65_536

_BOMS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What texts call an encoding -> the superset that their writers use.
_SUPERSETS = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "hz": "gb18030",
    "shift_jis": "cp932",
    "sjis": "cp932",
    "x-sjis": "cp932",
    "euc-kr": "cp949",
    "ks_c_5601-1987": "cp949",
    "big5": "cp950",
    "iso-8859-1": "cp1252",
    "latin1": "cp1252",
    "us-ascii": "cp1252",
    "ascii": "cp1252",
    "iso-8859-9": "cp1254",
    "tis-620": "cp874",
}
# Bytes that no text has, except UTF-16: C0 without tab, line breaks, backspace and escape.
_CONTROL = bytes({*range(0x20)} - set(b"\b\t\n\x0b\x0c\r\x1b"))
_NOT_CONTROL = bytes({*range(0x100)} - set(_CONTROL))

_PLAUSIBLE = re.compile(
    "[\t\n\r\x0b\x0c\x20-\x7e\u00a0-\u024f\u0370-\u05ff\u0600-\u06ff\u0900-\u0dff\u0e00-\u0eff"
    "\u1e00-\u1fff\u2010-\u2027\u2030-\u203a\u20a0-\u20bf\u2100-\u22ff\u2460-\u25ff\u3000-\u30ff"
    "\u4e00-\u9fa5\uac00-\ud7a3\uff01-\uff9f]"
)
_COMMON_16 = re.compile("[\n\r\x20-\x7e\u3001\u3002\u3040-\u30ff\uff0c\uff01\uff1a\u4e00-\u9fa5]")
_ASCII_16 = re.compile("[\n\r\x20-\x7e\u3001\u3002\uff0c\u7684\u306e]")

_CJK_MARKS = frozenset(
    "　、。，．・：；？！“”‘’…—～（）《》〈〉「」『』【】〔〕％＋－０１２３４５６７８９"
)
_SIMPLIFIED = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过"
    "发后作里用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前"
    "开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全三又关点正业外将两高间由问很最重"
    "并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给世位次度门任常"
    "先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安少报"
    "才结反受目太量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基眼"
    "书非则听白却界达光放强即像难且权思王象完设式色路记南品住告类求据程北边死张该交规万取拉格望觉术领"
    "共确传师观清今切院让识候带导争运请退款户费系统号输类型项目单价格"
)
_TRADITIONAL = frozenset(
    "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之年過"
    "發後作裡用道行所然家種事成方多經麼去法學如都同現當沒動面起看定天分還進好小部其些主樣理心她本前"
    "開但因只從想實日軍者意無力它與長把機十民第公此已工使情明性知全三又關點正業外將兩高間由問很最重"
    "並物手應戰向頭文體政美相見被利什二等產或新己制身果加西斯月話合回特代內信表化老給世位次度門任常"
    "先海通教兒原東聲提立及比員解水名真論處走義各入幾口認條平系氣題活爾更別打女變四神總何電數安少報"
    "才結反受目太量再感建務做接必場件計管期市直德資命山金指克許統區保至隊形社便空決治展馬科司五基眼"
    "書非則聽白卻界達光放強即像難且權思王象完設式色路記南品住告類求據程北邊死張該交規萬取拉格望覺術領"
    "共確傳師觀清今切院讓識候帶導爭運"
)
_KANA = frozenset(chr(c) for c in range(0x3041, 0x30FD))
_KANJI = frozenset(
    "日一国会人年大十二本中長出三同時政事自行社見月分議後前民生連五発間対上部東者党地合市業内相方"
    "四定今回新場金員九入選立開手米力学問高代明実円関決子動京全目表戦経通外最言氏現理調体化田当八"
    "六約主題下首意法不来作性的要用制治度務強気小七成期公持野協取都和統以機平総加山思家話世受区領"
    "多県続進正安設保改数記院女初北午指権心界支第産結百派点教報済書府活原先共得解名交資予川向際査"
    "勝面委告軍文反元重近千考判認画海参売利組知案道信策集在件団別物側任引使求所次水半品昨論計死官"
    "佐藤鈴木高橋名前住所番号電話様"
)
_HANGUL = frozenset(
    "이다는의에을를가은고하지로한사도기어리자나해인서시그들아대스일만정보있과수으라전부장게여면원제공"
    "주상적구모오선비안조성할신우세소진무실유관회동학중치당개용생때방물경문통내분연미마러까했습니요않없"
    "것같되된될또더말알바르데드트프체행발반설등본후계국간명화입력처저야든며려터음임위심식차재양산업노호"
    "단청품추권파합금법결현교평복열형히각영태날"
)
_LATIN = frozenset(
    "äöüßéèêëàâçñíóúáìòùôîïûœæøåãõýÄÖÜÉÀÈÇÑÁÍÓÚØÅÆ€£§°©®™–—‘’‚“”„…•«»¡¿·ªº²³½¼×±µ\xa0\xad"
)
_CYRILLIC_TOP = frozenset("оеаинтсрвлкм")
_CYRILLIC_LOW = frozenset("абвгдежзийклмнопрстуфхцчшщъыьэюяёіїєґў")
_COMMON: dict[str, frozenset[str]] = {  # the first wins a tie
    "cp1252": _LATIN,
    "gb18030": _SIMPLIFIED | _CJK_MARKS,
    "cp950": _TRADITIONAL | _CJK_MARKS,
    "cp932": _KANA | _KANJI | _CJK_MARKS,
    "euc_jp": _KANA | _KANJI | _CJK_MARKS,
    "cp949": _HANGUL | _CJK_MARKS,
    "cp1251": frozenset(),
    "koi8_r": frozenset(),
    "cp866": frozenset(),
}
_HIGH_RUN = re.compile(rb"[\x80-\xff]+")
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True, slots=True)
class Decoded:
    """A text, the codec that gave it, and what had to be replaced on the way."""

    text: str
    encoding: str
    warning: str | None = None


def decode(data: bytes, declared: str | None = None) -> Decoded:
    """Text of bytes in an encoding that is not known for sure; line breaks become LF.

    In this order: byte order mark, UTF-16 by its pattern, ISO-2022-JP by its escapes, UTF-8,
    what the file declares, UTF-8 with a few damaged places, the likeliest of the encodings that
    are still in use. Bytes that fit none are replaced by U+FFFD and counted in the warning.
    """
    decoded = _decode(data, declared)
    text = decoded.text.replace("\r\n", "\n").replace("\r", "\n")
    return Decoded(text, decoded.encoding, decoded.warning)


def looks_like_text(data: bytes) -> bool:
    """Whether bytes are text in some encoding rather than a binary format; looks at 64 KB."""
    if any(data.startswith(bom) for bom, _ in _BOMS):
        return True
    sample = data[:_SAMPLE_BYTES]
    controls = len(sample.translate(None, _NOT_CONTROL))
    if not controls or guess_utf16(sample):
        return True
    if controls * 500 > len(sample):
        return False
    try:  # a log with a stray control character
        codecs.getincrementaldecoder("utf-8")().decode(sample, final=False)
    except UnicodeDecodeError:
        return False
    return True


def guess_utf16(data: bytes) -> str | None:
    """`utf-16-le` or `utf-16-be` when bytes without a mark are that, else None.

    UTF-16 always holds bytes below 0x20 (the upper half of ASCII, of CJK marks, of Cyrillic),
    which no other encoding's text does; and its characters come from the scripts that people
    write, while those of binary data are spread over everything.
    """
    sample = data[: _SAMPLE_BYTES - _SAMPLE_BYTES % 2]
    if len(sample) < 4 or len(data) % 2 or not sample.translate(None, _NOT_CONTROL):
        return None
    best: tuple[int, str] | None = None
    for encoding in ("utf-16-le", "utf-16-be"):
        text = sample.decode(encoding, "replace")
        if len(_PLAUSIBLE.findall(text)) < 0.97 * len(text):
            continue
        if not _ASCII_16.search(text):
            continue
        common = len(_COMMON_16.findall(text)) + 3 * len(_ASCII_16.findall(text))
        if best is None or common > best[0]:
            best = (common, encoding)
    return best[1] if best else None


def _decode(data: bytes, declared: str | None) -> Decoded:
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            return _tolerant(data, encoding)
    utf16 = guess_utf16(data)
    if utf16:
        return _tolerant(data, utf16)
    if b"\x1b$B" in data or b"\x1b$@" in data:
        text = _strict(data, "iso2022_jp_ext")
        if text is not None:
            return Decoded(text, "iso2022_jp")
    for candidate in ("utf-8", _codec(declared)):
        text = _strict(data, candidate) if candidate else None
        if candidate and text is not None:
            return Decoded(text, candidate)
    damaged = data.decode("utf-8", "replace")
    bad = damaged.count("\ufffd")
    good = sum(1 for c in damaged if c > "\x7f") - bad
    if good >= 4 * bad:
        return _tolerant(data, "utf-8")
    return _tolerant(data, guess_legacy(data))


def _codec(declared: str | None) -> str | None:
    if not declared:
        return None
    name = declared.strip().strip("\"'").lower()
    name = _SUPERSETS.get(name, name)
    try:
        info = codecs.lookup(name)
    except (LookupError, ValueError):
        return None
    # `unicode_escape`, `base64` and the like are codecs too; a declaration of UTF-16 that could
    # be read as ASCII is wrong.
    is_text = getattr(info, "_is_text_encoding", True)
    odd = info.name.startswith(("utf-16", "utf-32", "unicode", "raw", "idna", "punycode", "utf-7"))
    return info.name if is_text and not odd else None


def _strict(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def _tolerant(data: bytes, encoding: str) -> Decoded:
    text = _strict(data, encoding)
    if text is not None:
        return Decoded(text, encoding)
    text = data.decode(encoding, "replace")
    bad = text.count("\ufffd")
    return Decoded(text, encoding, f"{bad} places could not be decoded as {encoding}")


def guess_legacy(data: bytes) -> str:
    """The likeliest codec of bytes that are neither UTF-8 nor UTF-16.

    Each candidate is scored by how many of its non-ASCII characters are ones that its languages
    use all the time: 0.5 to 1 for the right one, about 0.05 for a wrong one. This tells 8
    characters of GBK from EUC-KR, which a statistical detector needs 100 for; when nothing
    scores, charset-normalizer decides.
    """
    lines = [line for line in data.splitlines() if not line.isascii()]
    sample = b"\n".join(lines)[:_SAMPLE_BYTES]
    scores = {encoding: _score(sample, encoding) for encoding in _COMMON}
    best = max(scores, key=lambda encoding: scores[encoding])
    if scores[best] >= 0.25:
        return best
    from charset_normalizer import from_bytes

    match = from_bytes(sample, cp_isolation=[*_COMMON, "cp1250", "cp1253", "cp1254"]).best()
    return match.encoding if match else "cp1252"


def _score(sample: bytes, encoding: str) -> float:
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(sample, final=False)
    except UnicodeDecodeError:
        return 0.0
    foreign = [c for c in text if c > "\x7f"]
    if not foreign:
        return 0.0
    if encoding in ("cp1251", "koi8_r", "cp866"):
        worth = sum(1.0 if c in _CYRILLIC_TOP else 0.5 * (c in _CYRILLIC_LOW) for c in foreign)
        words = [w for w in _WORD.findall(text) if w > "\x7f"]
        # The other code pages swap the cases: their words look lIKE THIS.
        sound = sum(1 for w in words if w[1:].islower() or w.isupper())
        # 0.8: a few CJK bytes make Cyrillic letters more easily than the other way round.
        return 0.8 * worth / len(foreign) * (sound / len(words) if words else 0.5)
    share = sum(1 for c in foreign if c in _COMMON[encoding]) / len(foreign)
    if encoding == "cp1252":  # accents stand alone or in pairs, never in long runs
        alone = sum(len(run) for run in _HIGH_RUN.findall(sample) if len(run) <= 2)
        share *= alone / max(1, sum(len(run) for run in _HIGH_RUN.findall(sample)))
    return share
