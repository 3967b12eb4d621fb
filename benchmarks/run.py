"""Runs the benchmarks: both sides of each in one run, their ratio, the spread, the machine.

`make bench` (about 20 minutes) or `make bench-full`; `python benchmarks/run.py speed` for one. What
was measured replaces its part of results.json, and results.html is drawn anew.
"""

import argparse
import datetime as dt
import importlib
import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import page
from figures import Result, markdown, show

HERE = Path(__file__).parent
NAMES = (
    "speed", "scaling", "overhead", "memory", "kafka", "versions", "gateway", "feedback", "delays",
)  # fmt: skip
BEGIN, END = "<!-- figures: written by run.py --write-readme -->", "<!-- end of figures -->"

_ASK = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"


def machine(peers: Path | None) -> dict[str, str]:
    """Return what the figures are measured on, and when."""
    cpu = platform.processor() or "unknown"
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [s for s in info.read_text().splitlines() if s.startswith("model name")]
        cpu = models[0].split(":", 1)[1].strip() if models else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    out = {"cores": str(cores), "cpu": cpu, "Python": platform.python_version()}
    for name in (
        "midstream",
        "numba",
        "numpy",
        "msgspec",
        "bytewax",
        "pyarrow",
        "river",
        "confluent-kafka",
        "faust-streaming",
    ):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "none"
    if peers:
        asked = subprocess.run(
            [peers, "-c", _ASK, "river", "vowpalwabbit"], capture_output=True, text=True, check=True
        )
        out["peers: river"], out["vowpalwabbit"] = asked.stdout.split()
    out["on"] = dt.datetime.now(dt.UTC).date().isoformat()
    return out


def find_peers(path: Path) -> Path | None:
    """Return the interpreter of the peers, if they are installed there."""
    python = path.absolute() / "bin" / "python"
    if not python.exists():
        return None
    asked = subprocess.run(
        [python, "-c", "import river, vowpalwabbit"], capture_output=True, check=False
    )
    return None if asked.returncode else python


def write_readme(results: dict[str, Result]) -> None:
    """Put the figures between the markers in the README."""
    path = HERE / "README.md"
    text = path.read_text()
    head, tail = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    path.write_text(f"{head}\n\n{markdown(results)}\n{tail}")
    print(f"written: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; all if none")
    parser.add_argument("--full", action="store_true", help="more repeats, longer streams")
    parser.add_argument("--peers", type=Path, default=HERE.parent / ".venv-peers")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument(
        "--write-readme",
        action="store_true",
        help="put the figures of results.json into README.md; without names, measure nothing",
    )
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in NAMES]:
        parser.error(f"unknown benchmark {unknown[0]!r}; there are: {', '.join(NAMES)}")
    results: dict[str, Result] = {}
    if options.results.exists():
        results = msgspec.json.decode(options.results.read_bytes(), type=dict[str, Result])
    names = options.names or ([] if options.write_readme else NAMES)
    if names:
        peers = find_peers(options.peers)
        where = machine(peers)
        print(*(f"{k} {v}" for k, v in where.items()), sep=", ")
    for name in names:
        begun = time.perf_counter()
        print(f"\n== {name}", flush=True)
        result = importlib.import_module(name).bench(full=options.full, peers=peers)
        result.machine, result.full = where, options.full
        result.seconds = time.perf_counter() - begun
        show(result)
        for text in result.missing:
            print(f"\n  !! LEFT OUT: {text}\n")
        print(f"  ({result.seconds:.0f} s, {result.repeats} repeats)", flush=True)
        results[name] = result
    results = {name: results[name] for name in NAMES if name in results}
    encoded = msgspec.json.format(msgspec.json.encode(results), indent=2)
    options.results.write_bytes(encoded + b"\n")
    drawn = options.results.with_suffix(".html")
    drawn.write_text(page.render(results))
    print(f"\nwritten: {options.results}, {drawn}")
    if options.write_readme:
        write_readme(results)
    if missed := [row.text() for r in results.values() for row in r.rows if row.reached is False]:
        print("goals not reached:", *missed, sep="\n  ")


if __name__ == "__main__":
    main()
