"""What the README shows is tested."""

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
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", example],
        cwd=tmp_path, capture_output=True, text=True, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    assert (tmp_path / "phishing.midstream").exists()


def test_the_configs_shown_load(tmp_path):
    """The README's TOML is a config that loads."""
    from midstream.flows.settings import load, make_model

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

    for command in re.findall(
        r"midstream (init-topics|init|check|run|evaluate|send|demo|learners)\b", README
    ):
        assert command in cli.commands
