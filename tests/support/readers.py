"""The command line as it is for who may only read: another user, or over a read-only mount.

As root each command runs in a mount namespace of its own, with the capabilities of nobody: rights
on files hold for it. Who is not root takes the rights from itself; then it is the same user.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

NOBODY = 65534
KINDS = ("other", "group", "mount")
"""Who reads: any other user; one of the group, where others may not; root, where it is mounted so.
"""

# Arguments: user, group, folder to be mounted read-only or "-", number of folders, these folders,
# what is above them and not for all, "--", command.
_SCRIPT = """
set -e
user=$1 group=$2 fixed=$3 n=$4; shift 4
hold=$(mktemp -d -p /tmp); mount -t tmpfs none "$hold"
i=0; needed=
while [ $i -lt $n ]; do mkdir "$hold/$i"; mount --bind "$1" "$hold/$i"; eval "f$i=\\$1"; shift; i=$((i+1)); done
while [ "$1" != -- ]; do mount -t tmpfs -o mode=755 none "$1"; shift; done; shift
i=0
while [ $i -lt $n ]; do eval "f=\\$f$i"; mkdir -p "$f"; mount --bind "$hold/$i" "$f"; i=$((i+1)); done
umount -R "$hold"; rmdir "$hold"
if [ "$fixed" != - ]; then mount --bind "$fixed" "$fixed"; mount -o remount,bind,ro "$fixed"; fi
cd "$READER_IN"
if [ "$user" = 0 ]; then exec "$@"; fi
exec setpriv --reuid "$user" --regid "$group" --clear-groups --inh-caps=-all "$@"
"""  # noqa: E501

_ROOT = os.geteuid() == 0


class Reader:
    """Starts commands in a folder as one of `KINDS`, or as "owner", with no home and no caches.

    Parameters
    ----------
    scratch
        A folder for temporary files, all that it may write to; None: none.
    """

    def __init__(self, folder: Path, kind: str = "other", scratch: Path | None = None) -> None:
        self.folder = folder
        self.kind = kind
        self.scratch = scratch
        if scratch is not None and _ROOT:
            os.chown(scratch, NOBODY, NOBODY)

    def start(self, *command: str, **popen) -> subprocess.Popen:
        """Start a command."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("XDG_", "NUMBA_", "TMP", "TEMP", "HOME"))
        }
        environment |= {"READER_IN": str(self.folder), "PYTHONHASHSEED": "0"}
        environment |= {} if self.scratch is None else {"TMPDIR": str(self.scratch)}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **popen}
        return subprocess.Popen(
            [*self._prefix(), *command], cwd=self.folder, env=environment, **options
        )

    def call(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess:
        """Run a command of Midstream's to its end."""
        return self.python("-m", "midstream", *arguments, stdin=stdin)

    def python(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess:
        """Run Python to its end."""
        given = subprocess.PIPE if stdin is not None else subprocess.DEVNULL
        process = self.start(sys.executable, *arguments, stdin=given)
        out, err = process.communicate(stdin, timeout=300)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def _prefix(self) -> list[str]:
        if self.kind == "owner":
            return []
        if not _ROOT:
            if self.kind != "mount":
                return []
            inner = ["sh", "-c", _SCRIPT, "sh", "0", "0", str(self.folder), "0", "--"]
            return ["unshare", "--map-root-user", "--mount", *inner]
        user = {"other": NOBODY, "group": NOBODY, "mount": 0}[self.kind]
        group = {"other": NOBODY, "group": NOBODY - 1, "mount": 0}[self.kind]
        fixed = str(self.folder) if self.kind == "mount" else "-"
        needed, above = ([], []) if user == 0 else self._needed()
        place = [str(user), str(group), fixed, str(len(needed)), *needed, *above]
        return ["unshare", "--mount", "sh", "-c", _SCRIPT, "sh", *place, "--"]

    def _needed(self) -> tuple[list[str], list[str]]:
        """Return folders that the reader needs, and folders above them that are not for all."""
        here = Path(__file__).parents[2]
        wanted = [sys.prefix, sys.base_prefix, here, self.folder, *filter(None, [self.scratch])]
        hidden = {}
        for path in map(Path, wanted):
            closed = [p for p in path.resolve().parents if not p.stat().st_mode & 0o001]
            if closed:
                hidden[str(path.resolve())] = str(closed[-1])
        return list(hidden), sorted(set(hidden.values()))


@contextlib.contextmanager
def only_readable(folder: Path, kind: str):
    """Have a folder be one that a `Reader` of this kind may read, and not write to."""
    paths = [folder, *folder.rglob("*")]
    before = {path: path.stat() for path in paths}
    for path in paths:
        mode = 0o755 if path.is_dir() else 0o644
        if kind == "group":
            mode &= 0o750
            if _ROOT:
                os.chown(path, 0, NOBODY - 1)
        if not _ROOT and kind != "mount":
            mode &= 0o555
        path.chmod(mode)
    try:
        yield
    finally:
        for path, found in before.items():
            if path.exists():
                path.chmod(found.st_mode)


def listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return what lies in a folder: by name, number, size and time of the last change."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        info = path.stat()
        found[str(path)] = info.st_ino, info.st_size, info.st_mtime_ns
    return found
