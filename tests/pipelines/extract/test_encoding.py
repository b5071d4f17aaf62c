"""Encodings of text files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.nodes.extract.encoding import decode, looks_like_text
from tests.pipelines.extract.files import read

CHINESE = "会议纪要：客户要求退款，金额为三千元。"
TRADITIONAL = "知識庫檢索系統需要先建立索引，然後才能查詢。"
JAPANESE = "吾輩は猫である。名前はまだ無い。カタカナも使う。"
KOREAN = "모든 인간은 태어날 때부터 자유로우며 존엄과 권리에 있어 동등하다."
RUSSIAN = "Все люди рождаются свободными и равными в своем достоинстве."
GERMAN = "Die schöne Frau zahlt für Käse und Brötchen „drei“ Euro."


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (CHINESE, "utf-8"),
        (CHINESE, "utf-8-sig"),
        (CHINESE, "utf-16"),
        (CHINESE, "utf-16-le"),
        (CHINESE, "utf-16-be"),
        (GERMAN, "utf-16-le"),
        (GERMAN, "utf-16-be"),
        (RUSSIAN, "utf-16-le"),
        (KOREAN, "utf-32"),
        (CHINESE, "gbk"),
        (CHINESE[:8], "gbk"),
        (CHINESE + "㐀", "gb18030"),
        (TRADITIONAL, "big5"),
        (JAPANESE, "shift_jis"),
        (JAPANESE[:8], "shift_jis"),
        (JAPANESE, "euc_jp"),
        (JAPANESE, "iso2022_jp"),
        (KOREAN, "euc_kr"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8_r"),
        (RUSSIAN, "cp866"),
        (GERMAN, "cp1252"),
        ("naïve café", "cp1252"),
    ],
)
@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_text_is_read_in_the_encoding_it_was_written_in(
    text: str, encoding: str, line_break: str
) -> None:
    lines = [text, "plain ASCII 123", text]
    document = read(line_break.join(lines).encode(encoding), "a.txt")
    assert document.text == "\n".join(lines)
    assert document.warnings == ()


def test_a_long_ascii_beginning_does_not_hide_the_encoding() -> None:
    text = "key = value\n" * 20_000 + CHINESE
    assert decode(text.encode("gbk")).text == text


def test_a_declared_encoding_is_used_with_its_superset() -> None:
    data = "運费由买家承担".encode("gbk")  # not in GB 2312
    assert decode(data, "GB2312").text == "運费由买家承担"
    assert decode("“quoted”".encode("cp1252"), "iso-8859-1").text == "“quoted”"


@pytest.mark.parametrize("declared", ["no-such-encoding", "unicode_escape", "base64", "utf-16", ""])
def test_a_useless_declaration_is_passed_over(declared: str) -> None:
    assert decode("größer".encode("cp1252"), declared).text == "größer"


def test_a_few_damaged_bytes_do_not_turn_utf8_into_mojibake() -> None:
    data = (CHINESE * 3).encode() + b"\xe4\xbc"  # cut off inside of a character
    document = read(data, "a.txt")
    assert document.text == CHINESE * 3 + "\ufffd"
    assert document.warnings == ("1 places could not be decoded as utf-8",)


def test_control_characters_and_marks_do_not_reach_the_text() -> None:
    data = "a\x00b\ufeffc\x07d\n".encode() + b"more text in this log file\n" * 100
    assert read(data, "a.log").text.startswith("abcd\n")


@given(st.text())
def test_utf8_is_always_read_back(text: str) -> None:
    expected = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\x00" in text or any(c < " " and c not in "\t\n\r" for c in text):
        return  # may be UTF-16, see above
    if "\x1b" in text or text.startswith("\ufeff"):
        return
    assert decode(text.encode()).text == expected


@given(st.binary())
def test_any_bytes_give_some_text(data: bytes) -> None:
    assert isinstance(decode(data).text, str)


@given(st.binary(min_size=200, max_size=400))
def test_random_bytes_are_not_text(data: bytes) -> None:
    scrambled = bytes((b * 73 + i * 151) % 256 for i, b in enumerate(data * 3))
    assert not looks_like_text(b"\x01\x02\x03\x04" * 2 + scrambled)
