"""Text to terms."""

from __future__ import annotations

import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb.retrieval import analysis
from kb.retrieval.analysis import STOP_WORDS, analyse, analyse_query, term_id, terms_of_query


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\t… — ! ?", []),
        ("running runs RUN", ["run", "run", "run"]),
        ("Naïve café, Łódź, Straße.", ["naiv", "cafe", "lodz", "strass"]),
        ("the user's dog", ["the", "user", "dog"]),
        ("２０２４ ｆｕｌｌ ﬁt", ["2024", "full", "fit"]),
        ("so\u00adft zero\u200bwidth", ["soft", "zerowidth"]),
        ("3.14 2024", ["3.14", "3", "14", "2024"]),
        ("1,000 1,234,567.5", ["1000", "1", "000", "1234567.5", "1", "234", "567.5"]),
        ("1,2,3", ["1", "2", "3"]),
        ("GPT-3.5-turbo", ["gpt-3.5-turbo", "gpt", "3.5", "3", "5", "turbo"]),
        ("v1.01.", ["v1.01", "1.01", "1", "v1", "01"]),
        ("(foo_bar)", ["foo_bar", "foo", "bar"]),
        ("__init__", ["__init__", "init"]),
        ("C++, C# and .NET.", ["c++", "c", "c#", "c", "and", ".net", "net"]),
        ("C/C++", ["c/c++", "c", "c++", "c"]),
        ("user@host", ["user@host", "user", "host"]),
        ("AB-1234", ["ab-1234", "ab", "1234"]),
        ("getUserName", ["getusernam", "get", "user", "name"]),
        ("XMLParser", ["xmlparser", "xml", "parser"]),
        ("COVID19 IL6 H1N1", ["covid19", "covid", "19", "il6", "h1n1"]),
        ("std::vector", ["std::vector", "std", "vector"]),
        ("O’Neil", ["o'neil", "o", "neil"]),
        ("2010–2015", ["2010-2015", "2010", "2015"]),
        ("кофейный ёлка за́мок", ["кофейн", "елк", "замок"]),
        ("δρόμος δρόμοι", ["δρομ", "δρομ"]),
        ("٣٤", ["34"]),
        ("लड़का", analyse("लड़के")),
        ("知识库", ["知", "知识", "识", "识库", "库"]),
        ("ガ行", ["ガ", "ガ行", "行"]),
        ("パーティー", ["パ", "パー", "ー", "ーテ", "テ", "ティ", "ィ", "ィー", "ー"]),
        ("한국어", ["한", "한국", "국", "국어", "어"]),
        ("第3章、iPhone手机", ["第", "3", "章", "iphon", "phone", "手", "手机", "机"]),
        ("ที่นี่", ["ที่", "ที่นี่", "นี่"]),
    ],
)
def test_terms_of_a_text(text: str, expected: list[str]) -> None:
    assert analyse(text) == expected


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("gpt-3.5-turbo", "We use GPT-3.5-turbo."),
        ("3.5", "We use GPT-3.5-turbo."),
        ("the 1.01", "released as v1.01, today"),
        ("getusername", "call getUserName()"),
        ("user name", "call getUserName()"),
        ("c++", "written in C++."),
        (".net", "runs on .NET"),
        ("1000 genomes", "the 1,000 Genomes project"),
        ("state of the art", "a state-of-the-art method"),
        ("cafe", "Cafés"),
        ("人工智能", "关于人工智能的研究"),
    ],
)
def test_every_term_of_the_query_is_in_the_text(query: str, text: str) -> None:
    assert set(analyse_query(query)) <= set(analyse(text))


@pytest.mark.parametrize(
    ("one", "other"),
    [("C++", "C#"), ("ガ", "カ"), ("й", "и"), ("v1.01", "v1.10"), ("foo_bar", "foo-bar")],
)
def test_what_is_not_the_same_has_a_term_of_its_own(one: str, other: str) -> None:
    assert analyse(one)[0] != analyse(other)[0]


def test_stop_words_are_dropped_from_a_query_unless_there_is_nothing_else() -> None:
    assert analyse_query("What is the role of IL-6?") == ["role", "il-6", "il", "6"]
    assert analyse_query("To be, or not to be") == ["to", "be", "or", "not", "to", "be"]
    assert set(analyse_query("the who")) <= set(analyse("The Who played."))
    assert analyse("the role of") == ["the", "role", "of"]
    assert analyse_query("I don’t know why") == ["know"]


def test_a_word_that_only_shares_its_stem_with_a_stop_word_stays_in_the_query() -> None:
    assert "own" in STOP_WORDS
    assert analyse_query("owned") == ["own"]


def test_a_query_counts_its_terms_and_can_name_them() -> None:
    terms, names = terms_of_query("dogs and a Dog, cat")
    assert terms.ids.tolist() == sorted([term_id("dog"), term_id("cat")])
    weight = dict(zip(terms.ids.tolist(), terms.weights.tolist(), strict=True))
    assert {names[i]: w for i, w in weight.items()} == {"dog": 2.0, "cat": 1.0}


def test_a_query_without_terms_is_empty() -> None:
    terms, names = terms_of_query("?!")
    assert len(terms) == 0
    assert names == {}


def test_the_numbers_of_terms_never_change() -> None:
    # They are stored in every index: a new value here loses every text that was indexed before.
    assert [term_id(term) for term in ("", "dog", "c++", "知识")] == TERM_IDS


TERM_IDS = [309448485, 4148064672, 4108097864, 977926173]


def test_long_words_are_cut_and_long_identifiers_give_their_parts() -> None:
    assert analyse("7" * 1000) == ["7" * 64]
    assert analyse("-".join(["abc"] * 30)) == ["abc"] * 30


@given(st.text(), st.text())
def test_white_space_separates_what_does_not_influence_each_other(a: str, b: str) -> None:
    assert analyse(f"{a} {b}") == analyse(a) + analyse(b)


@given(st.text())
def test_the_form_in_which_a_text_is_encoded_does_not_matter(text: str) -> None:
    composed = analyse(unicodedata.normalize("NFC", text))
    assert analyse(unicodedata.normalize("NFD", text)) == composed


@given(st.text(st.characters(categories=["L", "M", "N", "P", "S", "Cf", "Cs"]), max_size=60))
def test_any_letter_or_digit_gives_a_term_and_terms_can_be_numbered(text: str) -> None:
    terms = analyse(text)
    letters = any(c.isalnum() for c in unicodedata.normalize("NFKC", text))
    assert terms or not letters
    assert all(terms)
    assert all(0 <= term_id(term) < 2**32 for term in terms)


@given(st.text())
def test_a_query_looks_for_nothing_but_what_the_same_text_would_hold(text: str) -> None:
    assert set(analyse_query(text)) <= set(analyse(text))


@given(st.text(), st.integers(0, 3))
def test_a_full_cache_changes_nothing(text: str, size: int) -> None:
    expected = analyse(text)
    cold = analysis._Cache()
    cold.max_chunks = max(size, 1)
    assert [t for chunk in analysis._chunks(text) for t in cold[chunk][0]] == expected
    assert len(cold) <= cold.max_chunks


def test_threads_agree() -> None:
    texts = [f"Running{i} foxes jumped Дома{i} 知识{i}" for i in range(2000)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda text: [analyse(t) for t in texts], range(4)))
    analysis._cache.clear()
    assert all(answer == [analyse(t) for t in texts] for answer in answers)


@pytest.mark.parametrize(
    "unit", ["a", "a.", "_", "a_", "+", "1,000", "aB1", "é\u0301", "知", "ก็", "'s", "a/"]
)
def test_a_long_text_without_a_space_takes_linear_time(unit: str) -> None:
    text = unit * (250_000 // len(unit))
    started = time.perf_counter()
    analyse(text)
    assert time.perf_counter() - started < 20, "quadratic time would take hours"
