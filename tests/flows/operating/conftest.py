"""Projects for the tests of what an operator does."""

import pytest
from kept import Kept

from midstream.flows import logs


@pytest.fixture
def kept(tmp_path):
    """Make such projects; their registries are closed in the end."""
    made = []

    def make(*arguments, **options):
        made.append(Kept(tmp_path, *arguments, **options))
        return made[-1]

    yield make
    for each in made:
        each.registry.close()


@pytest.fixture(autouse=True)
def _logs():
    logs.configure()
