"""The gateway's packages are an extra: nothing else needs them."""

import importlib
import subprocess
import sys

import pytest

from midstream.flows.gateway import serve as module
from midstream.flows.loading import load


def test_the_command_line_imports_none_of_them():
    """Whoever has no gateway waits for none of it, and needs none of it."""
    code = (
        "import sys, midstream.flows.cli, midstream.flows.gateway.serve\n"
        "print(*sorted({m.partition('.')[0] for m in sys.modules}\n"
        "              & {'faust', 'mode', 'aiokafka', 'aiohttp', 'prometheus_client'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", ["faust", "aiohttp"])
def test_a_missing_package_is_told_with_the_extra(tmp_path, monkeypatch, name):
    """One line, with the command that installs it."""
    plain = importlib.import_module

    def import_module(asked):
        if asked == name:
            raise ModuleNotFoundError(f"No module named {asked!r}", name=asked)
        return plain(asked)

    monkeypatch.setattr(module.importlib, "import_module", import_module)
    (tmp_path / "c.toml").write_text(
        '[model]\nlearner = "logistic"\ntask = "binary"\n[input]\npath = "e.jsonl"\n'
        '[gateway]\ntopic = "f"\n[kafka]\n"bootstrap.servers" = "127.0.0.1:1"\n'
    )
    with pytest.raises(module.GatewayError) as error:
        module.serve(load(tmp_path / "c.toml"))
    assert str(error.value) == (
        f"the gateway needs the package {name}: pip install 'midstream[faust]'"
    )
