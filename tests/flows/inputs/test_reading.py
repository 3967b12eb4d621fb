"""What the input is taken for is said: the unit of its times, and that no event has a label."""

import pytest

from midstream.flows.loading import load
from midstream.flows.offline import evaluation, inspect

N = 1_500


@pytest.fixture
def config(tmp_path, caplog):
    """Return what writes a config whose label is called so, beside a CSV file with `is_fraud`."""
    caplog.set_level("INFO", logger="midstream")
    rows = "".join(f"{i % 7},{i % 3},{i % 2},{1_764_000_000_000 + i}\n" for i in range(N))
    (tmp_path / "e.csv").write_text(f"a,b,is_fraud,at\n{rows}")

    def write(label: str):
        (tmp_path / "c.toml").write_text(
            '[model]\nlearner = "logistic"\ntask = "binary"\n[input]\npath = "e.csv"\n'
            f'[input.fields]\nlabel = "{label}"\ntime = "at"\n'
        )
        return load(tmp_path / "c.toml")

    return write


def test_a_label_that_no_event_has_is_warned_of_once(config, caplog):
    """With the field that it might be; the events are predicted."""
    summary, _ = evaluation.evaluate(config("is_frod"))
    assert (summary.predictions, summary.learned, summary.rejected) == (N, 0, 0)
    (told,) = [record for record in caplog.records if record.message == "no_labels"]
    assert told.fields["field"] == "is_frod"
    assert "did you mean 'is_fraud'?" in told.fields["why"]


def test_the_unit_of_times_is_said_once(config, caplog):
    """It was told by the size of the numbers; where there are labels nothing is said of them."""
    summary, _ = evaluation.evaluate(config("is_fraud"))
    assert summary.learned == N
    (told,) = [record for record in caplog.records if record.message in ("time_unit", "no_labels")]
    assert told.fields["taken"] == "ms"


def test_check_fails_where_no_event_has_a_label(config):
    """So that a misspelt name is found before a model learns nothing for days."""
    report = inspect.inspect(config("is_frod"), 1_000)
    (found,) = [each for each in report.findings if each.what == "labels"]
    assert not report.ok
    assert not found.ok
    assert "did you mean 'is_fraud'?" in found.detail
    report = inspect.inspect(config("is_fraud"), 1_000)
    assert report.ok
    assert "taken as ms" in next(each.detail for each in report.findings if each.what == "times")
