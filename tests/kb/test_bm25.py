"""BM25 term weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb.retrieval.analysis import analyse, term_id, terms_of_query
from kb.retrieval.bm25 import K1, B, idf, terms_of_document, upper_bound

WORDS = st.lists(st.sampled_from(["dog", "cat", "fox", "owl", "hen"]), max_size=40)


def weights(tokens: list[str], average_length: float) -> dict[int, float]:
    terms = terms_of_document(tokens, average_length=average_length)
    return dict(zip(terms.ids.tolist(), terms.weights.tolist(), strict=True))


def test_weights_by_hand() -> None:
    # k1 * (1 - b + b * 4/2) = 1.2 * 1.75 = 2.1
    assert weights(["dog", "cat", "dog", "dog"], 2) == pytest.approx(
        {term_id("dog"): 3 * 2.2 / (3 + 2.1), term_id("cat"): 2.2 / (1 + 2.1)}
    )


def test_a_text_of_average_length_that_says_a_word_once_weighs_it_one() -> None:
    assert weights(["dog", "cat"], 2) == pytest.approx({term_id("dog"): 1, term_id("cat"): 1})


def test_a_text_without_terms_has_none() -> None:
    terms = terms_of_document([], average_length=10)
    assert len(terms) == 0
    assert terms.ids.dtype == np.uint32
    assert terms.weights.dtype == np.float32


@given(WORDS, st.floats(0.5, 1000))
def test_terms_are_distinct_ascending_and_weigh_less_than_k1_plus_one(
    tokens: list[str], average_length: float
) -> None:
    terms = terms_of_document(tokens, average_length=average_length)
    assert terms.ids.tolist() == sorted(map(term_id, set(tokens)))
    assert all(0 < weight <= K1 + 1 for weight in terms.weights.tolist())


@given(WORDS.filter(bool), st.floats(0.5, 1000))
def test_saying_a_word_again_weighs_more_and_a_longer_text_weighs_less(
    tokens: list[str], average_length: float
) -> None:
    word = tokens[0]
    before = weights(tokens, average_length)[term_id(word)]
    swapped = [*tokens[:-1], "emu"] if tokens[-1] != word else [*tokens, "emu"]
    repeated = weights([*swapped[:-1], word], average_length)[term_id(word)]
    assert repeated > weights(swapped, average_length)[term_id(word)]
    assert weights([*tokens, *["emu"] * 9], average_length)[term_id(word)] < before


def test_terms_that_share_a_number_count_as_one() -> None:
    one, other = COLLIDING
    assert term_id(one) == term_id(other)
    together = weights([one, other, "dog"], 3)
    assert together == pytest.approx(weights([one, one, "dog"], 3))


COLLIDING = ("t15385", "t210367")


@pytest.mark.parametrize("average_length", [0.0, -1.0, math.nan])
def test_an_average_length_that_is_no_length_is_refused(average_length: float) -> None:
    with pytest.raises(ValueError, match="average_length is"):
        terms_of_document(["dog"], average_length=average_length)


def test_idf_is_positive_and_falls_with_every_text_that_holds_the_term() -> None:
    values = [idf(100, holding) for holding in range(101)]
    assert values == sorted(values, reverse=True)
    assert values[-1] > 0
    assert idf(10, 3) == pytest.approx(math.log(1 + 7.5 / 3.5))


@given(WORDS, WORDS.filter(bool), st.floats(0.5, 1000))
def test_no_text_scores_above_the_upper_bound(
    tokens: list[str], query: list[str], average_length: float
) -> None:
    terms, _ = terms_of_query(" ".join(query))
    idfs = np.linspace(0.1, 3, len(terms))
    held = weights(analyse(" ".join(tokens)), average_length)
    score = sum(
        count * value * held.get(id, 0.0)
        for id, count, value in zip(terms.ids.tolist(), terms.weights.tolist(), idfs, strict=True)
    )
    assert score <= upper_bound(terms, idfs)


def test_the_upper_bound_is_approached_by_saying_nothing_else() -> None:
    terms, _ = terms_of_query("dog dog cat")
    idfs = [1.0, 2.0] if terms.ids[0] == term_id("dog") else [2.0, 1.0]
    assert upper_bound(terms, idfs) == pytest.approx((2 * 1.0 + 1 * 2.0) * (K1 + 1))
    held = weights(["dog", "cat"] * 100_000, 1e9)
    assert 2 * held[term_id("dog")] + 2 * held[term_id("cat")] == pytest.approx(
        upper_bound(terms, idfs), rel=1e-3
    )


def test_the_constants_are_those_that_stored_weights_were_made_with() -> None:
    assert (K1, B) == (1.2, 0.75)
