"""From the model's numbers to labelled scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_resnet.exceptions import ResultError
from edge_resnet.pipeline.postprocessing import Score, scores, softmax, top_k


def test_softmax_by_hand():
    np.testing.assert_allclose(softmax(np.float32([0, math.log(3)])), [0.25, 0.75], rtol=1e-6)


@pytest.mark.parametrize('shift', [1e4, -1e4, 1e30])
def test_softmax_does_not_overflow(shift):
    with np.errstate(over='raise', invalid='raise'):
        result = softmax(np.float32([shift, shift, shift]))
    np.testing.assert_allclose(result, [1 / 3] * 3, rtol=1e-6)


def test_softmax_of_far_apart_logits():
    assert softmax(np.float32([1e4, -1e4])).tolist() == [1, 0]


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20))
def test_softmax_is_a_distribution_in_the_same_order(values):
    result = softmax(np.float32(values))
    assert result.sum() == pytest.approx(1, abs=1e-5)
    assert (np.diff(result[np.argsort(values)]) >= -1e-7).all()


@pytest.mark.parametrize('kind', ['softmax', 'logits'])
@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_an_output_that_is_not_finite_is_refused(kind, bad):
    with pytest.raises(ResultError, match='2 values that are not finite'):
        scores(np.float32([0.1, bad, bad]), kind)


def test_an_eight_bit_softmax_may_overshoot():
    assert scores(np.float32([1.0039, -0.0001, 0.5]), 'softmax').tolist() == [1, 0, 0.5]


LABELS = ('a', 'b', 'c', 'd')


def test_best_first():
    assert top_k(np.float64([0.1, 0.5, 0.3, 0.1]), LABELS, 2) == [Score('b', 0.5), Score('c', 0.3)]


@pytest.mark.parametrize('k', range(1, 6))
def test_equal_scores_come_in_label_order(k):
    """At the cut too: which of equals is published must not depend on how the sort works inside."""
    assert [entry.label for entry in top_k(np.float32([0.2, 0.4, 0.2, 0.2]), LABELS, k)] == ['b', 'a', 'c', 'd'][:k]


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=40), st.integers(1, 45))
def test_as_a_plain_sort_would(values, k):
    labels = [str(number) for number in range(len(values))]
    expected = sorted(range(len(values)), key=lambda number: (-values[number], number))[:k]
    assert [entry.label for entry in top_k(np.float32(values), labels, k)] == [labels[number] for number in expected]


def test_threshold_is_inclusive():
    assert [entry.label for entry in top_k(np.float64([0.5, 0.25, 0.125, 0.125]), LABELS, 4, 0.25)] == ['a', 'b']
    assert top_k(np.float64([0.5, 0.25, 0.125, 0.125]), LABELS, 4, 0.9) == []


def test_scores_are_plain_floats():
    """A ROS message takes no numpy.float32."""
    assert type(top_k(np.float32([1.0]), ('a',), 1)[0].score) is float
