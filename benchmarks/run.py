"""Runs the benchmarks: both sides of each in one run, their ratio, the spread, the machine.

`make bench` (under 10 minutes) or `make bench-full`; `python benchmarks/run.py overhead` for one.
"""

import argparse
import importlib
import json
import platform
import sys
import time
from pathlib import Path

NAMES = ("overhead", "memory")


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    import river

    import midstream

    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    return {
        "cpu": cpu,
        "cores": len(__import__("os").sched_getaffinity(0)),
        "python": platform.python_version(),
        "river": river.__version__,
        "midstream": midstream.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(NAMES))
    parser.add_argument("--full", action="store_true", help="more repeats, longer streams")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results.json"))
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        sys.exit(f"unknown benchmark {unknown.pop()!r}; there are: {', '.join(NAMES)}")
    sys.path.insert(0, str(Path(__file__).parent))
    results: dict[str, object] = {"machine": machine()}
    print(*(f"{k}: {v}" for k, v in results["machine"].items()), sep=", ")  # type: ignore[attr-defined]
    for name in options.names:
        begun = time.perf_counter()
        print(f"\n== {name}")
        results[name] = importlib.import_module(name).bench(full=options.full)
        print(f"({time.perf_counter() - begun:.0f} s)")
    options.json.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\nwritten: {options.json}")


if __name__ == "__main__":
    main()
