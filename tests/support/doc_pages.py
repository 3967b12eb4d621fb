"""Runs the code blocks of a page of Markdown, in order, as a reader would.

In a folder of their own:

- `bash` blocks run in one shell for the whole page; a command that fails ends the page. One with
  the comment "until Ctrl-C" is stopped once it has caught up, and has to end with exit code 0.
- `console` blocks are commands after a `$ `, each with the output that it gives; `...` in it stands
  for anything. A command may fail where its output, standard error included, is as shown.
- Blocks with a `title="NAME"` are files, and are written.
- `python` blocks run one after the other in one namespace.
- `toml` blocks have to load as a config. A part of one is put to the least config there is.
- A comment ``<!-- test`` holds what the reader does not see: a `bash` block to make data, say.

`midstream` in them is a shim, which has the fork server start it: 0.1 s instead of 2.4.
"""

import contextlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fork_server import ForkedPopen

__all__ = ["ROOT", "Block", "Shell", "blocks_of", "links_of", "load_toml", "pages", "run_page"]

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
_HIDDEN = re.compile(r"<!-- test\n(.*?)-->", re.DOTALL)
_LEAST = {"model": {"learner": "logistic", "task": "binary"}, "input": {"path": "events.jsonl"}}
_PATIENCE = 300  # seconds for a block


class Block(NamedTuple):
    """A code block: the line that it begins in, its language, the file that it is, its text."""

    line: int
    language: str
    title: str
    text: str


def pages() -> list[Path]:
    """Return the README and all pages."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(page: Path) -> Iterator[Block]:
    """Yield the code blocks of a page, those in ``<!-- test`` comments included."""
    text = page.read_text(encoding="utf-8")
    text = _HIDDEN.sub(lambda match: "\n" + match[1], text)
    for match in _BLOCK.finditer(text):
        title = re.search(r'title="([^"]+)"', match["info"])
        code = textwrap.dedent(match["text"])
        line = text.count("\n", 0, match.start()) + 1
        yield Block(line, match["language"], title[1] if title else "", code)


def load_toml(text: str, folder: Path) -> Any:
    """Load a config, or what the least config becomes with a part of one."""
    from midstream.flows.loading import load

    raw = tomllib.loads(text)
    if not {"model", "input"} <= raw.keys():
        given = raw.get("input", {})
        base = {**_LEAST, "input": {} if given.keys() & {"topic", "path"} else _LEAST["input"]}
        outputs = raw.get("output", {})
        topics = any(isinstance(outputs.get(k), str) for k in ("predictions", "rejected", "alarms"))
        if ("topic" in given or topics or "gateway" in raw) and "kafka" not in raw:
            base["kafka"] = {"bootstrap.servers": "127.0.0.1:9092"}
        for table, keys in raw.items():
            both = isinstance(keys, dict) and isinstance(base.get(table), dict)
            base[table] = {**base[table], **keys} if both else keys
        text = "".join(f"{json.dumps(key)} = {_inline(value)}\n" for key, value in base.items())
    file = folder / "config.toml"
    file.write_text(text, encoding="utf-8")
    return load(file)


def _inline(value: Any) -> str:
    """Return a value as TOML in one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_inline(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return json.dumps(value) if isinstance(value, str | bool | int | float) else str(value)


# --- midstream, started by the fork server

_SHIM = """#!{python} -S
import os, signal, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({place!r})
told = [f"{{name}}={{value}}" for name, value in os.environ.items()]
request = "\\0".join([os.getcwd(), str(len(told)), *told, *sys.argv[1:]])
socket.send_fds(server, [request.encode()], [0, 1, 2])
pid = int(server.recv(64))
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, _: os.kill(pid, number))
status = int(server.recv(64))
os._exit(128 - status if status < 0 else status)
"""


class _Shim:
    """The command `midstream` in a folder, whose processes a fork server makes."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._environment = {**environment, "PYTHONHASHSEED": "0"}
        place = str(folder / "shim.socket")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.bind(place)
        self._socket.listen()
        command = folder / "midstream"
        command.write_text(_SHIM.format(python=sys.executable, place=place))
        command.chmod(0o755)
        self.processes: list[subprocess.Popen[bytes]] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Kill what still runs, and serve no more."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._start, args=(client,), daemon=True).start()

    def _start(self, client: socket.socket) -> None:
        request, descriptors, _, _ = socket.recv_fds(client, 1 << 20, 3)
        folder, number, *rest = request.decode().split("\0")
        exported = dict(pair.split("=", 1) for pair in rest[: int(number)])
        process = ForkedPopen(
            rest[int(number) :], cwd=folder, env={**self._environment, **exported},
            stdin=descriptors[0], stdout=descriptors[1], stderr=descriptors[2],
        )  # fmt: skip
        self.processes.append(process)
        for descriptor in descriptors:
            os.close(descriptor)
        with contextlib.suppress(OSError):
            client.send(str(process.pid).encode())
        status = process.wait()
        with contextlib.suppress(OSError):
            client.send(str(status).encode())
        client.close()


# --- the shell of a page


class Shell:
    """A bash that runs the blocks of a page, one after the other."""

    def __init__(self, folder: Path, tools: Path, environment: Mapping[str, str]) -> None:
        self._folder, self._tools = folder, tools
        tools.mkdir(parents=True)
        kept = {**os.environ, **environment}
        path = f"{tools}:{Path(sys.executable).parent}:{kept['PATH']}"
        self._shim = _Shim(tools, {**kept, "PATH": path})
        self._log = (tools / "output").open("w+b")
        self._bash = subprocess.Popen(
            ["bash", "--norc"], cwd=folder, env={**kept, "PATH": path}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._count = 0

    def run(self, script: str, *, strict: bool = True) -> tuple[int, str]:
        """Run lines; return the exit code and what they printed. `strict`: up to the first error.

        What runs in the background is left alone; what it prints comes with a later block.
        """
        self._count += 1
        file = self._tools / f"block-{self._count}.sh"
        file.write_text(("set -eo pipefail\n" if strict else "set +e\n") + script)
        done = self._tools / f"done-{self._count}"
        output = self._tools / f"output-{self._count}"
        assert self._bash.stdin is not None
        self._bash.stdin.write(f". {file} < /dev/null > {output} 2>&1; echo $? > {done}\n")
        self._bash.stdin.flush()
        for _ in range(_PATIENCE * 100):
            if done.exists() and (code := done.read_text().strip()):
                return int(code), output.read_text(errors="replace")
            try:
                code = self._bash.wait(0.01)
            except subprocess.TimeoutExpired:
                continue
            return code or 1, output.read_text(errors="replace")
        raise AssertionError(f"not done in {_PATIENCE} s:\n{script}\n{output.read_text()}")

    def close(self) -> None:
        """End it, and all that it started."""
        self._shim.close()
        self._bash.kill()
        self._bash.communicate()
        self._log.close()


def commands_in(text: str) -> list[tuple[str, str]]:
    """Return the commands of a `console` block, each with the output that is shown."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif found:
            command, output = found[-1]
            if command.endswith("\\"):
                found[-1] = (f"{command}\n{line.removeprefix('> ')}", output)
            else:
                found[-1] = (command, output + line + "\n")
    return found


def matches(shown: str, printed: str) -> bool:
    """Tell whether what was printed is as shown; several blanks in a line are as one."""

    def plain(text: str) -> str:
        return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())

    pattern = re.escape(plain(shown)).replace(re.escape("..."), ".*")
    return re.fullmatch(pattern, plain(printed), re.DOTALL) is not None


def run_page(
    page: Path, folder: Path, exceptions: Mapping[str, Any], environment: Mapping[str, str]
) -> int:
    """Run the blocks of a page; return how many did. Commands among `exceptions` are left out."""
    work = folder / "page"
    work.mkdir()
    shell = Shell(work, folder / "tools", environment)
    names: dict[str, Any] = {"__name__": "__main__"}
    ran = 0
    try:
        for block in blocks_of(page):
            where = f"{page.relative_to(ROOT)}, line {block.line}"
            if block.title:
                (work / block.title).parent.mkdir(parents=True, exist_ok=True)
                (work / block.title).write_text(block.text, encoding="utf-8")
            if block.language == "toml":
                load_toml(block.text, work if block.title else folder)
            elif block.title:
                pass
            elif block.language == "bash":
                lines = [line for line in block.text.splitlines() if not _left(line, exceptions)]
                code, output = shell.run("\n".join(map(_stopped, lines)) + "\n")
                assert code == 0, f"{where}: exit code {code}\n{block.text}\n{output}"
            elif block.language == "console":
                for command, shown in commands_in(block.text):
                    code, output = shell.run(command + "\n", strict=False)
                    assert matches(shown, output), (
                        f"{where}: {command}\nshown:\n{shown}\nprinted:\n{output}"
                    )
                    fails = any(line.startswith("midstream: ") for line in shown.splitlines())
                    assert code == 0 or fails, f"{where}: {command}: exit code {code}\n{output}"
            elif block.language == "python":
                with contextlib.chdir(work), contextlib.redirect_stdout(io.StringIO()) as printed:
                    exec(compile(block.text, where, "exec"), names)  # noqa: S102 the page's own
                names["printed"] = printed.getvalue()
            else:
                continue
            ran += 1
    finally:
        shell.close()
    return ran


def _stopped(line: str) -> str:
    """Return a command that a reader is told to stop as one that is stopped when it caught up."""
    if "until Ctrl-C" not in line:
        return line
    return f"""\
log=$(mktemp)
{line.partition("#")[0]} > $log 2>&1 &
process=$!
until grep -q event=caught_up $log; do
  kill -0 $process 2> /dev/null || {{ cat $log; false; }}
  sleep 0.05
done
kill $process
wait $process || {{ cat $log; false; }}
"""


def _left(line: str, exceptions: Mapping[str, Any]) -> bool:
    return any(line.strip().startswith(command) for command in exceptions)


# --- links

_LINK = re.compile(r"(?<!!)\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)|!\[[^\]]*\]\(([^()\s]+)\)")


def links_of(page: Path) -> list[str]:
    """Return the targets of the links and pictures of a page."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    text = re.sub(r"`[^`\n]*`", "`code`", text)
    return [match[1] or match[2] for match in _LINK.finditer(text)]
