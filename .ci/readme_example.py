"""Print the Python example of the README whose path is the argument."""

import re
import sys
from pathlib import Path

example, *_ = re.findall(r"```python\n(.*?)```", Path(sys.argv[1]).read_text(), re.DOTALL)
sys.stdout.write(example)
