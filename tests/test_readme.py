"""What the README shows is tested."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs_as_it_stands(tmp_path):
    """The README's ten lines run, and print metrics."""
    example, _ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", example],
        cwd=tmp_path, capture_output=True, text=True, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    assert (tmp_path / "phishing.midstream").exists()


def test_the_five_lines_that_load_a_version_run_as_they_stand(tmp_path):
    """A registry is opened, a version loaded, and an event predicted."""
    _, example = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    _, builtin, _, _ = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "midstream.toml").write_text(builtin + '[input]\npath = "events.jsonl"\n')
    events = [
        {"x": {"amount": amount, "country": country}, "y": amount > 10}
        for amount in [*range(20)] * 50
        for country in ("CH", "FR")
    ]
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (tmp_path / "events.jsonl").write_text(lines)
    run = [sys.executable, "-m", "midstream", "run", "midstream.toml", "--until-eof"]
    for command in (run, [sys.executable, "-W", "error::UserWarning", "-c", example]):
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False,
            env=dict(os.environ),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert done.stdout == "True\n"


def test_the_configs_shown_load(tmp_path):
    """The README's TOML is a config that loads."""
    from midstream.flows.config.factory import make_model
    from midstream.flows.loading import load

    blocks = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    config = tmp_path / "config.toml"
    least, builtin, fields, topics = blocks
    config.write_text(least + fields)
    settings = load(config)
    assert settings.input.fields is not None
    assert settings.input.fields.label == "is_fraud"
    assert tomllib.loads(least)["model"]["task"] == "binary"
    config.write_text(builtin + least[least.index("[input]") :])
    settings = load(config)
    assert make_model(settings).task == "binary"
    assert settings.features == {"amount": "number", "country": "category"}
    config.write_text(topics)
    settings = load(config)
    assert settings.input.topic == "transactions"
    assert not settings.one_shard


def test_files_and_commands_that_the_readme_names_exist():
    """Every path and subcommand in the README is there."""
    for path in re.findall(r"`((?:tests|benchmarks|engine)/[\w./]+)`", README):
        assert (ROOT / path).exists(), path
    from midstream.flows.cli import cli

    block = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
    named = re.findall(r"^midstream ([a-z-]+)", block, re.MULTILINE)
    named += re.findall(r"`midstream ([a-z-]+)", README)
    assert {"run", "restore", "history", "snapshots", "send"} <= set(named)
    for command in named:
        assert command in cli.commands
