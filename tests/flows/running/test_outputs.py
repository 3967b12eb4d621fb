"""What of the predictions is published, on a real broker."""

import signal
import time

import pytest
from project import events


def with_part(project, part):
    text = project.config.read_text()
    project.config.write_text(text.replace("[output]\n", f"[output]\n{part}"))


@pytest.mark.slow
def test_a_share_of_the_predictions_of_what_has_no_label(topics):
    """The same ones however often the run is killed, counted as published; all is learned."""
    lines = events(12_000)
    for event in lines[::3]:
        del event["y"]
    part = "share = 0.25\nonly = 'unlabelled'\n"
    every = topics("every")
    every.produce(lines)
    every.project.run()
    some = topics("some", source=every.source)
    with_part(some.project, part)
    for _ in range(2):
        process = some.project.start("run", "config.toml", "--json")
        for line in process.stderr:
            if "event=running" in line:
                break
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    some.project.run()
    full = {p["id"]: p for p in every.out("predictions")}
    got = {p["id"]: p for p in some.out("predictions")}
    assert len(got) == len(some.out("predictions")), "a prediction was published twice"
    unlabelled = {event["id"] for event in lines[::3]}
    assert set(got) < unlabelled
    assert abs(len(got) - 1_000) < 200, len(got)
    assert all(p == full[key] for key, p in got.items())
    calm = topics("calm", source=every.source)
    with_part(calm.project, part)
    summary = calm.project.run()
    assert (summary["learned"], summary["predictions"]) == (8_000, len(got))
    assert {p["id"] for p in calm.out("predictions")} == set(got)
