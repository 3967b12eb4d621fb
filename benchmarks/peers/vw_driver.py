"""Vowpal Wabbit's C++ driver on a file. Usage: vw_driver.py FILE [OPTION ...]

The wheel has no `vw` command, but the driver is in it: given `--data`, the workspace calls
start_parser, generic_driver and end_parser, which is what the command's main does. Not a line
passes through Python. The clock includes setting it up, and not the start of Python.
"""

import json
import sys
import time

from vowpalwabbit import pyvw


def main() -> None:
    options = ["--loss_function", "logistic", "--quiet", "--no_stdin", "--data", *sys.argv[1:]]
    begun = time.perf_counter()
    vw = pyvw.Workspace(arg_list=options)
    seconds = time.perf_counter() - begun
    n = vw.get_weighted_examples()
    print(json.dumps({"events": n, "seconds": seconds, "log_loss": vw.get_sum_loss() / n}))


if __name__ == "__main__":
    main()
