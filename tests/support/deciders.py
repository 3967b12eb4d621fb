"""Models with a decision of their own, for tests of whatever must obey it."""

import pytest
import river
from river import base

__all__ = ["NEEDS_TIME", "Threshold"]

NEEDS_TIME = pytest.mark.skipif(
    river.__version__ < "0.26", reason="River hands the time on since 0.26"
)


class Threshold(base.Wrapper, base.Classifier):
    """Says True from a probability of `least` on."""

    def __init__(self, model, least=0.1):
        self.model = model
        self.least = least

    @property
    def _wrapped_model(self):
        return self.model

    def learn_one(self, x, y):
        self.model.learn_one(x, y)

    def predict_proba_one(self, x):
        return self.model.predict_proba_one(x)

    def predict_one(self, x):
        return self.predict_proba_one(x).get(True, 0.0) >= self.least
