"""From a model's output vector to labelled scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edge_resnet.exceptions import ResultError


class Score(NamedTuple):
    """One class of a classification: its label and its score, 0 to 1."""

    label: str
    score: float


def softmax(logits: np.ndarray) -> np.ndarray:
    """Scores of ``logits``, (N,) float: shifted by the maximum first, so that no exponential overflows."""
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def scores(output: np.ndarray, kind: str) -> np.ndarray:
    """(N,) float32 scores, 0 to 1, from a dequantised ``output``; ``kind`` is 'logits' or 'softmax'.

    ResultError when a value is not finite. A softmax output is clipped to 0-1: its 8-bit steps may overshoot by one.
    """
    if not np.isfinite(output).all():
        raise ResultError(f'model output has {int((~np.isfinite(output)).sum())} values that are not finite')
    return softmax(output) if kind == 'logits' else np.clip(output, 0.0, 1.0)


def top_k(values: np.ndarray, labels: Sequence[str], k: int, threshold: float = 0.0) -> list[Score]:
    """The best ``k`` of ``values`` at or above ``threshold``, best first; equal scores in label order."""
    best = np.argsort(-values, kind='stable')[:k]
    return [Score(labels[i], float(values[i])) for i in best if values[i] >= threshold]
