"""Score arithmetic on its own."""

from __future__ import annotations

from math import inf, log, nan, sqrt
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb.retrieval.fusion import Weights, fuse, normalise_dense, normalise_text

cosines = st.floats(-1, 1, width=32)
bm25 = st.floats(0, 1e6, width=32, allow_subnormal=False)
shares = st.floats(0, 1)
weights = st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)).filter(lambda w: sum(w) > 0)

A, B, C = UUID(int=1), UUID(int=2), UUID(int=3)


@pytest.mark.parametrize(
    ("dense", "text"),
    [(0, 0), (-0.1, 1), (1, -1), (nan, 1), (1, nan), (inf, 1), (inf, inf), (1e308, 1e308)],
)
def test_weights_without_a_meaning_are_refused(dense: float, text: float) -> None:
    with pytest.raises(ValueError, match="give two finite numbers >= 0"):
        Weights(dense, text)


@given(weights, st.floats(1e-3, 1e3))
def test_only_the_ratio_of_the_weights_matters(pair: tuple[float, float], factor: float) -> None:
    scaled = Weights(pair[0] * factor, pair[1] * factor) if sum(pair) * factor > 0 else None
    if scaled is not None:
        assert scaled.shares == pytest.approx(Weights(*pair).shares, abs=1e-9)


@given(weights)
def test_shares_add_up_to_one(pair: tuple[float, float]) -> None:
    assert sum(Weights(*pair).shares) == pytest.approx(1, abs=1e-12)


@given(weights, shares, shares, shares, shares)
def test_the_mean_lies_between_its_parts_and_never_falls_when_one_rises(
    pair: tuple[float, float], d1: float, d2: float, t1: float, t2: float
) -> None:
    low = Weights(*pair).mean(min(d1, d2), min(t1, t2))
    high = Weights(*pair).mean(max(d1, d2), max(t1, t2))
    # Exactly, not about: the service stops reading a leg on the strength of this.
    assert 0 <= low <= high <= 1
    assert min(d1, t1) - 1e-12 <= Weights(*pair).mean(d1, t1) <= max(d1, t1) + 1e-12


@given(cosines, cosines)
def test_a_dense_score_keeps_the_order_of_cosines(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert 0 <= normalise_dense(low) <= normalise_dense(high) <= 1
    if high - low > 1e-9:
        assert normalise_dense(low) < normalise_dense(high)


@given(st.floats(0.001, 1))
def test_a_dense_score_is_the_cosine_itself(cosine: float) -> None:
    assert normalise_dense(cosine) == cosine


@pytest.mark.parametrize(
    ("cosine", "score"), [(-1, 0), (-1.0000002, 0), (1.0000002, 1), (0, 0.001 / 1.001)]
)
def test_a_dense_score_at_the_edges(cosine: float, score: float) -> None:
    assert normalise_dense(cosine) == pytest.approx(score, abs=1e-12)


@given(bm25, bm25)
def test_a_text_score_is_the_share_of_the_best(one: float, other: float) -> None:
    low, best = sorted((one, other))
    share = normalise_text(low, best)
    assert 0 <= share <= 1
    assert share * best == pytest.approx(low, rel=1e-6)
    assert (share == 0) == (low == 0), "a text without a term of the query scores 0, others more"
    assert (share == 1) == (low == best > 0)


def test_a_text_score_that_rose_during_the_query_stays_in_range() -> None:
    assert normalise_text(2.0, best=1.9) == 1.0


def test_fused_scores_are_weighted_means_over_the_union_of_the_legs() -> None:
    fused = fuse({A: 0.8, B: 0.4}, {B: 6.0, C: 3.0}, Weights(1, 3), best_text=6.0)
    assert fused == pytest.approx(
        {A: 0.25 * 0.8, B: 0.25 * 0.4 + 0.75 * 1.0, C: 0.75 * 0.5}, abs=1e-12
    )


@given(st.dictionaries(st.integers(0, 50).map(lambda n: UUID(int=n)), cosines, max_size=20))
def test_a_single_leg_counts_alone(dense: dict[UUID, float]) -> None:
    alone = {i: normalise_dense(cosine) for i, cosine in dense.items()}
    assert fuse(dense, None, Weights(1, 0), best_text=0) == alone
    text = {i: cosine + 1.5 for i, cosine in dense.items()}
    best = max(text.values(), default=0.0)
    expected = {i: normalise_text(score, best) for i, score in text.items()}
    assert fuse(None, text, Weights(0, 1), best_text=best) == expected
    assert fuse(dense, text, Weights(1, 0), best_text=best) == alone
    assert fuse(dense, text, Weights(0, 1), best_text=best) == expected


def test_nothing_fuses_to_nothing() -> None:
    assert fuse({}, {}, Weights(1, 1), best_text=0.0) == {}
    assert fuse({uuid4(): -1.0}, {}, Weights(1, 1), best_text=0.0).popitem()[1] == 0.0


def test_the_contract_s_worked_example_of_a_weighted_sum_comes_out_to_four_decimals() -> None:
    """Its keyword part is a cosine of term sets; ours is the share of the best BM25 score. What
    becomes of the two parts is the same."""
    alpha, gamma = log(3 / 2) + 1, log(3 / 3) + 1
    keyword = alpha * alpha / (alpha * sqrt(alpha**2 + gamma**2))
    assert round(keyword, 4) == 0.8148
    weights = Weights(0.7, 0.3)
    assert round(weights.mean(0.6, keyword), 4) == 0.6644
    assert round(weights.mean(0.5, 0.0), 4) == 0.35
