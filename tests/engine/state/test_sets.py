"""Sets come back as they were walked, since models walk through them and add up on the way."""

import os
import random
import subprocess
import sys

import pytest

from midstream.engine.state.encoding import decode, encode
from midstream.engine.state.kinds.sets import arrangement, fill

# Of what has the same hash in every process: the test is the same each time.
SIZES = [*range(26), 76, 77, 78, 79, 80, 100, 200, 306, 307, 308, 320, 600, 1229]
MAKES = {
    "integers": lambda rng: rng.randrange(10**5),
    "decimals": lambda rng: round(rng.uniform(0, 1000), 1),
    "pairs": lambda rng: (rng.randrange(10), rng.randrange(10**4)),
}


def grown(make, n, rng):
    """Return a set of up to n values, added one by one."""
    values = set()
    for _ in range(n):
        values.add(make(rng))
    return values


@pytest.mark.parametrize("kind", MAKES)
def test_a_set_is_filled_again_as_it_is_walked(kind):
    """The order of filling that is found makes a set that is walked alike, and so later on."""
    make, rng, later = MAKES[kind], random.Random(kind), 0
    for n in SIZES:
        values = grown(make, n, rng)
        again = set()
        order = arrangement([*values])
        assert order is not None, n
        fill(again, order)
        assert [*again] == [*values], n
        assert sys.getsizeof(again) == sys.getsizeof(values), n
        for value in [make(rng) for _ in range(n + 3)]:
            values.add(value)
            again.add(value)
        later += [*again] == [*values]
    assert later >= len(SIZES) - 2  # where values have stood, two tables may be walked alike


@pytest.mark.parametrize("kind", ["integers", "decimals"])
def test_saved_numbers_are_walked_as_before(kind):
    """Sets of numbers of any size come back from their bytes walked as they were."""
    rng = random.Random(kind)
    for n in SIZES:
        values = grown(MAKES[kind], n, rng)
        data = encode(values)
        assert [*decode(data)] == [*values], n
        assert encode(decode(data)) == data


CODE = """
import random
from river import linear_model, preprocessing
from midstream import Trainer

def run(resumed):
    rng = random.Random(1)
    model = preprocessing.OneHotEncoder() | linear_model.LogisticRegression()
    trainer = Trainer(model, task="binary")
    for i in range(600):
        x = {"city": f"city {rng.randrange(400)}", "shop": f"shop {rng.randrange(30)}"}
        trainer.step_one(x, rng.random() < 0.3 + 0.4 * ("7" in x["city"]))
        if resumed and i % 50 == 0:
            trainer = Trainer.from_state(trainer.state())
    return trainer.digest()

assert run(True) == run(False)
"""


def test_one_hot_encoded_texts_resume_bit_for_bit():
    """An encoder of 400 cities, saved and loaded 12 times, is that which never was."""
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=dict(os.environ, PYTHONHASHSEED="0"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_set_that_cannot_be_told_is_none():
    """Places that no order of filling leads to are found out."""
    assert arrangement([]) == []
    assert arrangement([7, 0]) is None
    assert arrangement([0, 7]) == [0, 7]
