"""Make the old states: what a run leaves, of all kinds, as test data for later versions.

    python tests/old_states/make.py tests/old_states/0.1.0

is run with the code whose states are to be kept, which was, for `0.1.0`, the last before the
modules moved into packages by subject. Each case is a packed folder (`life`), and `manifest.json`
has what that code says of it: the state that it reads, what it makes of the rest of the input, its
versions, its history, and what commands do to it. Names of cases after the folder make only those.

Digests, metrics and predictions are the same each time; identities, times, and where a journal was
cut into records are not. Kafka and PostgreSQL have to be there (CONTRIBUTING.md, "Tests").
"""

import csv
import getpass
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

if os.environ.get("PYTHONHASHSEED") != "0":  # as `midstream` runs
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    sys.exit(subprocess.call([sys.executable, *sys.argv], env=environment))
sys.path[:0] = [str(Path(__file__).parents[1] / "support"), str(Path(__file__).parents[1])]

from kafka_broker import Cluster  # noqa: E402
from old_states import life  # noqa: E402

from midstream import Trainer  # noqa: E402
from midstream.engine.shard.journal import Command, FileJournal  # noqa: E402
from midstream.flows.loading import load  # noqa: E402
from midstream.flows.running import online  # noqa: E402

Row = dict[str, Any]

# Nothing of where it was made stands in it.
socket.gethostname = lambda: "host"
getpass.getuser = lambda: "operator"


# --- streams


def stream(n: int, *, seed: int = 1, task: str = "binary", turn: int = 10**9) -> list[Row]:
    """Return events of a noisy linear concept, with numbers, categories, text, time and source.

    From event number `turn` on it is turned over.
    """
    rng = random.Random(seed)
    weights = [rng.uniform(-1, 1) for _ in range(4)]
    made = []
    for i in range(n):
        x: Row = {f"f{j}": round(rng.gauss(0, 1), 4) for j in range(4)}
        score = sum(w * v for w, v in zip(weights, x.values(), strict=True))
        x["shop"] = rng.choice(["north", "south", "east", "west"])
        x["text"] = " ".join(rng.choices(["good", "cheap", "late", "broken", "fine", "odd"], k=4))
        score += (x["shop"] == "north") - 0.3 * x["text"].count("broken") + rng.gauss(0, 0.3)
        score = -score if i >= turn else score
        y: Any = score > 0
        if task == "multiclass":
            y = "low" if score < -0.5 else "high" if score > 0.5 else "mid"
        elif task == "regression":
            y = round(5 + score, 4)
        event = {"id": f"e{i}", "ts": 1.7e9 + 3_000.0 * i, "x": x, "y": y}
        if i % 7 == 3:
            event["source"] = "partner"
        if i % 11 == 5:
            del event["y"]
        if i % 13 == 4:
            del x["f2"]
        made.append(event)
    return made


def numbers(rows: list[Row]) -> list[Row]:
    """Return events with their numbers only."""
    return [{**row, "x": {k: v for k, v in row["x"].items() if k[0] == "f"}} for row in rows]


def without_text(rows: list[Row]) -> list[Row]:
    """Return events with numbers and a category."""
    return [{**row, "x": {k: v for k, v in row["x"].items() if k != "text"}} for row in rows]


def weighted(rows: list[Row]) -> list[Row]:
    """Return events with sample weights."""
    return [{**row, "weight": 0.5 + i % 3} for i, row in enumerate(rows)]


def lines(rows: list[Row]) -> bytes:
    """Return events as JSON lines."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def table(rows: list[Row]) -> bytes:
    """Return events as CSV, as a bank would export it: decimal commas, and words for no value."""
    file = io.StringIO()
    names = ["tx", "when", "f0", "f1", "f2", "f3", "shop", "note", "card", "class"]
    writer = csv.writer(file, delimiter=",", lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        x = row["x"]
        values = [str(x.get(f"f{j}", "NA")).replace(".", ",") for j in range(4)]
        note = f'said "{x["text"]}",\nand more' if row["id"].endswith("0") else x["text"]
        writer.writerow(
            [row["id"], int(row["ts"]), *values, x["shop"], note, "4711", row.get("y", "-")]
        )
    return file.getvalue().encode()


def arrow(rows: list[Row], kind: str) -> bytes:
    """Return events as an Arrow file, an Arrow stream, or Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: [row.get(name) for row in rows] for name in ("id", "ts", "y", "source")}
    features = {name: [row["x"].get(name) for row in rows] for name in ("f0", "f1", "f2", "f3")}
    made = pa.table({**columns, "x": pa.StructArray.from_arrays(
        [pa.array(values, pa.float64()) for values in features.values()]
        + [pa.array([row["x"]["shop"] for row in rows])],
        [*features, "shop"],
    )})  # fmt: skip
    sink = io.BytesIO()
    if kind == "parquet":
        pq.write_table(made, sink, row_group_size=40)
    else:
        writer = (pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream)(sink, made.schema)
        with writer:
            writer.write_table(made, max_chunksize=40)
    return sink.getvalue()


# --- a case


class Case:
    """A folder with a config, in which things happen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.operations: list[list[str]] = []
        self.served: Callable[[Path], AbstractContextManager[None]] = lambda _: nullcontext()

    def config(self, text: str, *, model: str = "", **sections: str) -> None:
        """Write the config, and the module of the model."""
        defaults = {
            "replay": "capacity = 40",
            "state": "commit_seconds = 0.02\nsnapshot_seconds = 1e6",
            "versions": "",
        }
        parts = [f'name = "old"\n{text}']
        for name, lines_ in {**defaults, **sections}.items():
            more = "poll_seconds = 0.05\nrewind_days = 1e6\n" if name == "versions" else ""
            parts.append(f"[{name}]\n{more}{lines_}")
        (self.folder / life.CONFIG).write_text("\n".join(parts) + "\n")
        if model:
            (self.folder / "models.py").write_text(model)

    def write(self, name: str, data: bytes, *, later: bool = False) -> None:
        """Append to a file of the input, now or when the state is read."""
        path = self.folder / ("more" if later else "") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(data)

    def halves(
        self, rows: list[Row], name: str = "events.jsonl", form: Callable[..., bytes] = lines
    ) -> None:
        """Write half of the events now, and the others when the state is read."""
        middle = len(rows) // 2
        self.write(name, form(rows[:middle]))
        self.write(name, form(rows[middle:]), later=True)

    def run(self) -> Row:
        """Run to the end of the input."""
        return apart(life.run, self.folder)

    def call(self, *arguments: str) -> Any:
        """Give a command."""
        return apart(life.call, self.folder, *arguments)

    def killed(self, after: int, *, torn: bool = False) -> None:
        """Run, killed by SIGKILL once so many predictions were made; the last are not committed.

        `torn`: with half a line in the outputs and half a record in the journal.
        """
        apart(_run_until_killed, self.folder, after)
        if torn:
            (shard,) = (self.folder / "state" / "shards").glob("[0-9]*/")
            for path, end in (
                (self.folder / "out" / "predictions.jsonl", b'{"id": "e99'),
                (sorted(shard.glob("journal-*"))[-1], b'00a1b2c3 {"seq": 99, "entr'),
            ):
                with path.open("ab") as file:
                    file.write(end)

    def then(self, *commands: str) -> None:
        """Have commands tried on what is read, each with a run after it."""
        self.operations = [command.split() for command in commands]


class Killed(BaseException):
    """The process was killed."""


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own; return what it returns, None if it was killed."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reads)
        code = 1
        try:
            told = json.dumps(function(*arguments)).encode()
            with os.fdopen(writes, "wb") as file:
                file.write(told)
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writes)
    with os.fdopen(reads, "rb") as file:
        told = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == -signal.SIGKILL:
        return None
    if status != 0:
        raise RuntimeError(f"{function.__name__}{arguments}: exit code {status}")
    return json.loads(told)


def _run_until_killed(folder: Path, after: int) -> None:
    written, write = 0, FileJournal.write

    def count(self: FileJournal, output: str, data: bytes) -> None:
        nonlocal written
        write(self, output, data)
        written += data.count(b"\n") if output.startswith("predictions") else 0
        if written >= after:
            self._outputs.sync(output)  # it was written, and is not committed
            os.kill(os.getpid(), signal.SIGKILL)

    FileJournal.write = count
    online.run(load(folder / life.CONFIG), until_eof=True)
    raise RuntimeError("it ended by itself")


def _run_until_killed_learning_again(folder: Path) -> None:
    """Run, and die while the input is learned again for a rewind, which is in the journal."""
    steps, commit, step = -(10**9), FileJournal.commit, Trainer.step

    def note(self: FileJournal, entries: Any, about: Any = None) -> int:
        nonlocal steps
        done = commit(self, entries, about)
        if any(isinstance(entry, Command) and entry.kind == "rewind" for entry in entries):
            steps = 0
        return done

    def count(self: Trainer, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *arguments)

    FileJournal.commit, Trainer.step = note, count
    online.run(load(folder / life.CONFIG), until_eof=True)
    raise RuntimeError("it ended by itself")


# --- models

LOGISTIC = """
from river import linear_model, optim, preprocessing

def make():
    return preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.Adam(0.02))
"""
RIVER = {
    "hoeffding_tree": (
        "binary",
        "from river import tree\n",
        "tree.HoeffdingTreeClassifier(grace_period=40, delta=0.01)",
    ),
    "adaptive_tree": (
        "regression",
        "from river import compose, tree\n",
        "compose.SelectType(float) | tree.HoeffdingAdaptiveTreeRegressor(grace_period=40, seed=1)",
    ),
    "forest": (
        "multiclass",
        "from river import compose, forest\n",
        "compose.SelectType(float) | forest.ARFClassifier(n_models=3, seed=1, grace_period=30)",
    ),
    "text_bayes": (
        "binary",
        "from river import feature_extraction, naive_bayes\n",
        'feature_extraction.BagOfWords(on="text") | naive_bayes.MultinomialNB()',
    ),
    "text_tfidf": (
        "binary",
        "from river import feature_extraction, linear_model\n",
        'feature_extraction.TFIDF(on="text", ngram_range=(1, 2)) | '
        "linear_model.LogisticRegression()",
    ),
    "bandit": (
        "regression",
        "from river import bandit, compose, linear_model, metrics, model_selection, optim, "
        "preprocessing\n",
        "compose.SelectType(float) | preprocessing.StandardScaler() | "
        "model_selection.BanditRegressor(\n"
        "        [linear_model.LinearRegression(optim.SGD(rate)) for rate in (0.001, 0.01, 0.1)],\n"
        "        metrics.MAE(), bandit.EpsilonGreedy(0.2, decay=0.01, seed=3))",
    ),
    "windows_of_time": (
        "regression",
        "import datetime as dt\nfrom river import feature_extraction, linear_model, preprocessing, "
        "stats, utils\n",
        "feature_extraction.TargetAgg('shop', utils.TimeRolling(stats.Mean, "
        "period=dt.timedelta(hours=8))) | "
        "preprocessing.StandardScaler() | linear_model.LinearRegression()",
    ),
    "sliding_windows": (
        "regression",
        "from river import compose, feature_extraction, linear_model, stats, utils\n",
        "(compose.SelectType(float) + feature_extraction.Agg('f0', 'shop', utils.Rolling("
        "stats.Var, window_size=9))) | linear_model.LinearRegression()",
    ),
    "neighbours": (
        "multiclass",
        "from river import compose, neighbors\n",
        "compose.SelectType(float) | neighbors.KNNClassifier(engine=neighbors.LazySearch(80))",
    ),
    "imputed": (
        "binary",
        "from river import linear_model, preprocessing, stats\n",
        "preprocessing.StatImputer(('f2', stats.Mean())) | "
        "preprocessing.StandardScaler() | linear_model.PAClassifier(C=0.05)",
    ),
}
OWN = '''
"""A learner and a transformer of a user's, which hold objects of Midstream's public classes."""

from river import base, linear_model, preprocessing

from midstream import Alarm, Event, EventBatch, Prediction, Rejected, Reservoir


class Ratios(base.Transformer):
    """Adds ratios of numbers to how they were before."""

    def __init__(self):
        self.before = {}

    def learn_one(self, x):
        for name, value in x.items():
            if isinstance(value, float):
                self.before[name] = 0.9 * self.before.get(name, value) + 0.1 * value

    def transform_one(self, x):
        known = {n: v for n, v in x.items() if isinstance(v, float)}
        return known | {f"{n}_moved": v - self.before.get(n, v) for n, v in known.items()}


class Rehearsing(base.Classifier):
    """A logistic regression that learns some of the last events again, and keeps notes."""

    def __init__(self, memory=5):
        self.memory = memory
        self.model = preprocessing.StandardScaler() | linear_model.LogisticRegression()
        self.past = [Event(x={"f0": 0.0}, y=True)]
        self.counted = Reservoir(0, seed=4)
        self.said = []
        self.odd = {}

    def learn_one(self, x, y):
        event = Event(x=dict(x), y=y, id=f"n{self.counted.seen}", ts=1.5, group={"g": "a"})
        self.counted.add(EventBatch.from_events([event]))
        self.model.learn_one(x, y)
        for old in self.past:
            self.model.learn_one(old.x, old.y)
        self.past = [*self.past, event][-self.memory :]
        if self.counted.seen % 20 == 0:
            wrong = self.predict_one(x) != y
            where = ("events.jsonl", 0, self.counted.seen)
            self.said = [
                Prediction(id=event.id, model="own", version=0, role="champion", y_pred=not wrong,
                           y_proba=None, ts=None, origin=where),
                Alarm(kind="drift", detector="own", feature=None, value=float(wrong),
                      threshold=0.5, position=self.counted.seen, ts=None),
            ]
            self.odd[event.id] = Rejected(where, "odd", "x", "")
            self.odd = dict(list(self.odd.items())[-3:])

    def predict_proba_one(self, x):
        return self.model.predict_proba_one(x)


def make():
    return Ratios() | Rehearsing()
'''
FRAGILE = """
from river import linear_model, preprocessing

class Scaler(preprocessing.StandardScaler):
    def learn_one(self, x):
        super().learn_one(x)            # half updated when it raises
        if x["f0"] > 1.7:
            raise ValueError("too much")

def make():
    return Scaler() | linear_model.LogisticRegression()
"""
DIVERGING = """
from river import base

class Diverges(base.Regressor):
    def __init__(self):
        self.n = 0
    def learn_one(self, x, y):
        self.n += 1
    def predict_one(self, x):
        return float("nan") if self.n % 50 == 7 else float(self.n)

def make():
    return Diverges()
"""


def model(learner: str = "models:make", task: str = "binary", more: str = "") -> str:
    """Return the section [model]."""
    return f'[model]\nlearner = "{learner}"\ntask = "{task}"\n{more}'


def source(path: str = "events.jsonl", more: str = "") -> str:
    """Return the section [input]."""
    return f'[input]\npath = "{path}"\n{more}'


SMALL = model("logistic", more="options = { bits = 10 }")
FEATURES = '\n[features]\nf0 = "number"\nf1 = "number"\nf2 = "number"\nf3 = "number"\n'
FEATURES += 'shop = "category"\n'

# --- the cases

CASES: dict[str, Callable[[Case], None]] = {}


def case(function: Callable[[Case], None]) -> Callable[[Case], None]:
    """Add a case, whose name is that of the function and whose docstring says what is kept."""
    CASES[function.__name__] = function
    function.about = function.__doc__.partition("\n")[0]
    return function


@case
def plain(c: Case) -> None:
    """River's pipeline on JSON lines, all settings at their defaults, ended in order."""
    (c.folder / life.CONFIG).write_text(f"{model()}\n{source()}\n[versions]\nrewind_days = 1e6\n")
    (c.folder / "models.py").write_text(LOGISTIC)
    c.halves(numbers(stream(600)))
    c.run()


@case
def packed(c: Case) -> None:
    """A gzip file, of which a run has read a part when it was killed."""
    c.config(f"{model()}\n{source('events.jsonl.gz')}", model=LOGISTIC)
    c.write("events.jsonl.gz", gzip.compress(lines(numbers(stream(600))), mtime=0))
    c.killed(250)


@case
def cells(c: Case) -> None:
    """CSV with [input.fields]: decimal commas, words for no value, quoted cells over lines."""
    fields = """[input.fields]
id = "tx"
label = "class"
time = "when"
exclude = ["card"]
types = { note = "string" }
missing = ["NA", "-"]
decimal = ","
time_unit = "s"
"""
    learner = model("softmax", "multiclass", 'labels = "text"\noptions = { bits = 10 }')
    c.config(f"{learner}\n{source('events.csv')}\n{fields}")
    data = table(stream(500, task="multiclass")).splitlines(keepends=True)
    c.write("events.csv", b"".join(data[:230]))
    c.write("events.csv", b"".join(data[230:]), later=True)
    c.run()


@case
def folder_of_formats(c: Case) -> None:
    """A folder of JSON lines, an Arrow file, an Arrow stream and Parquet, read in turns, ahead."""
    learner = model("logistic", more="options = { bits = 10 }")
    turns = source("in", 'order = "fair"\nahead = true')
    c.config(f"{learner}\n{turns}{FEATURES}")
    rows = without_text(stream(600))
    c.write("in/a.jsonl", lines(rows[:100]))
    c.write("in/b.arrow", arrow(rows[100:200], "arrow"))
    c.write("in/c.parquet", arrow(rows[200:300], "parquet"))
    c.write("in/d.arrows", arrow(rows[300:400], "arrows"))
    c.run()
    # One file alone: in which order several are read in turns, time decides.
    c.write("in/e.parquet", arrow(rows[400:], "parquet"), later=True)


@case
def parquet_in_the_middle(c: Case) -> None:
    """Parquet, of which a run has read a part when it was killed."""
    learner = model("linear", "regression", 'options = { optimizer = "adam", bits = 10 }')
    c.config(f"{learner}\n{source('events.parquet')}{FEATURES}")
    rows = without_text(stream(2_000, task="regression"))
    c.write("events.parquet", arrow(rows, "parquet"))
    c.killed(300)


@case
def shards(c: Case) -> None:
    """A shard for each file of a folder, with versions of all of them."""
    several = source("in", 'shards = "partition"')
    c.config(f"{model()}\n{several}", model=LOGISTIC)
    for number in range(3):
        c.halves(numbers(stream(300, seed=number)), f"in/{number}.jsonl")
    c.run()
    c.then("restore 1 --yes", "rollback --yes")


@case
def rotated(c: Case) -> None:
    """A log that was rotated twice, once compressed, while it was read."""
    log = source("events.log", 'format = "jsonl"')
    c.config(f"{model()}\n{log}", model=LOGISTIC)
    rows = numbers(stream(600))
    c.write("events.log", lines(rows[:150]))
    c.run()
    c.write("events.log", lines(rows[150:200]))
    (c.folder / "events.log").rename(c.folder / "events.log.1")
    c.write("events.log", lines(rows[200:300]))
    c.run()
    c.write("events.log", lines(rows[300:320]))
    packed_ = gzip.compress((c.folder / "events.log.1").read_bytes(), mtime=0)
    (c.folder / "events.log.1").unlink()
    c.write("events.log.2.gz", packed_)
    (c.folder / "events.log").rename(c.folder / "events.log.1")
    c.write("events.log", lines(rows[320:350]))
    c.run()
    c.write("events.log", lines(rows[350:]), later=True)
    c.then("restore 1 --rewind --yes")


@case
def latest(c: Case) -> None:
    """Begun at the end of what was there."""
    end = source(more='start = "latest"')
    c.config(f"{model()}\n{end}", model=LOGISTIC)
    rows = numbers(stream(500))
    c.write("events.jsonl", lines(rows[:200]))
    c.run()
    c.write("events.jsonl", lines(rows[200:350]))
    c.run()
    c.write("events.jsonl", lines(rows[350:]), later=True)


def _of_optimizer(name: str) -> Callable[[Case], None]:
    def made(c: Case) -> None:
        options = f"optimizer = '{name}', bits = 10, l2 = 0.001, rate = 0.05, threshold = 0.4"
        options += ", class_weights = { true = 2.5 }"
        learner = model("logistic", more=f"options = {{ {options} }}")
        c.config(f"{learner}\n{source()}{FEATURES}")
        c.halves(weighted(without_text(stream(400))))
        c.run()

    made.__name__ = f"logistic_{name}"
    made.__doc__ = f"The compiled logistic regression by {name}: categories, weights, both kinds."
    return case(made)


for _name in ("sgd", "adagrad", "adam", "ftrl"):
    _of_optimizer(_name)


@case
def linear(c: Case) -> None:
    """The compiled linear regression, without a schema: any features, and texts as categories."""
    learner = model("linear", "regression", "options = { bits = 10, scale = false }")
    c.config(f"{learner}\n{source()}")
    c.halves(stream(400, task="regression"))
    c.run()


@case
def softmax(c: Case) -> None:
    """The compiled softmax regression, with a class that comes late."""
    options = "options = { bits = 10, optimizer = 'adagrad', class_weights = { mid = 2.0 } }"
    c.config(f"{model('softmax', 'multiclass', options)}\n{source()}")
    rows = stream(400, task="multiclass")
    for row in rows[150:]:
        if row["x"]["shop"] == "west" and "y" in row:
            row["y"] = "unheard-of"
    c.halves(rows)
    c.run()


def _of_river(name: str) -> Callable[[Case], None]:
    task, imports, expression = RIVER[name]

    def made(c: Case) -> None:
        text = f"{imports}\n\ndef make():\n    return ({expression})\n"
        c.config(f"{model(task=task)}\n{source()}", model=text)
        rows = stream(500, task=task)
        c.halves(numbers(rows) if name == "imputed" else rows)
        c.run()

    made.__name__ = name
    made.__doc__ = f"A model of River's: {name.replace('_', ' ')}."
    return case(made)


for _name in RIVER:
    _of_river(_name)


@case
def own(c: Case) -> None:
    """A user's learner and transformer, which hold an Event, a Reservoir and others of ours."""
    c.config(f"{model()}\n{source()}", model=OWN)
    c.halves(numbers(stream(400)))
    c.run()


@case
def measured(c: Case) -> None:
    """Chosen metrics over a small window, and both detectors with options, after drift."""
    names = 'names = ["accuracy", "roc_auc", "log_loss"]\nwindow = 50\nfading = 0.99'
    drift = 'detectors = ["page_hinkley", "adwin"]\ndirection = "both"\n'
    drift += "adwin = { delta = 0.05, clock = 8 }\npage_hinkley = { threshold = 12.0 }"
    c.config(
        f"{model()}\n{source()}",
        model=LOGISTIC,
        metrics=names,
        drift=drift,
        replay="capacity = 200\nmax_bytes = 40000\nseed = 9",
    )
    c.halves(numbers(stream(1_600, turn=500)))
    c.run()


@case
def rejecting(c: Case) -> None:
    """Lines that are no events, and events that the learner raised on; killed."""
    learner = model(more='on_error = "reject"\nerror_limit = 0.9')
    c.config(
        f"{learner}\n{source()}",
        model=FRAGILE,
        state="commit_seconds = 0.02\nsnapshot_events = 100\nsnapshot_seconds = 1e6",
    )
    rows = list(lines(numbers(stream(600))).splitlines(keepends=True))
    for at in (5, 130, 131, 400):
        rows[at] = b'{"id": "odd", "x": {"f0": "a text"}, "y": 7}\n'
    rows[200] = b"\xff{no json\n"
    c.write("events.jsonl", b"".join(rows))
    c.killed(220)


@case
def diverged(c: Case) -> None:
    """Predictions that were not finite numbers, of which alarms tell."""
    c.config(f"{model(task='regression')}\n{source()}", model=DIVERGING)
    c.halves(numbers(stream(400, task="regression")))
    c.run()


@case
def killed(c: Case) -> None:
    """Killed by SIGKILL: records after the last snapshot, and outputs that are not committed."""
    c.config(
        f"{model()}\n{source()}",
        model=LOGISTIC,
        state="commit_seconds = 0.02\nsnapshot_events = 100\nsnapshot_seconds = 1e6",
        versions="every_events = 100",
    )
    c.write("events.jsonl", lines(numbers(stream(600))))
    c.killed(260, torn=True)


@case
def never_snapped(c: Case) -> None:
    """Killed before the first snapshot: all there is, is the journal."""
    c.config(f"{SMALL}\n{source()}")
    c.write("events.jsonl", lines(stream(600)))
    c.killed(200)


@case
def damaged(c: Case) -> None:
    """The newest snapshot is damaged, and an older one has to do."""
    c.config(
        f"{model()}\n{source()}",
        model=LOGISTIC,
        state="commit_seconds = 0.02\nsnapshot_events = 100\nsnapshot_seconds = 1e6",
    )
    c.halves(numbers(stream(800)))
    c.run()
    newest = sorted(c.folder.glob("state/shards/000/snapshot-*"))[-1]
    data = bytearray(newest.read_bytes())
    data[-100] ^= 0xFF
    newest.write_bytes(data)


@case
def operated(c: Case) -> None:
    """Versions that were made, tagged, restored, promoted, rolled back and pruned."""
    c.config(f"{model()}\n{source()}", model=LOGISTIC)
    rows = numbers(stream(900))
    for number in range(4):
        c.write("events.jsonl", lines(rows[100 * number : 100 * number + 100]))
        c.run()
    c.call("tag", "2", "release")
    for command in (["restore", "1"], ["promote", "2"], ["rollback"]):
        c.call(*command, "--yes")
        c.run()
    c.write("events.jsonl", lines(rows[400:500]))
    c.run()
    c.call("snapshots", "create", "--reason", "asked for")
    c.call("pause", "--reason", "maintenance", "--yes")
    c.run()
    c.call("resume")
    c.call("snapshots", "prune", "--keep", "3", "--keep-hours", "0", "--keep-days", "0", "--yes")
    c.run()
    c.write("events.jsonl", lines(rows[500:]), later=True)
    c.then(
        "restore 2 --yes", "rollback --yes", "promote 2 --yes",
        "restore 2 --rewind --skip-source partner --yes", "snapshots create", "rollback --yes",
    )  # fmt: skip


@case
def paused(c: Case) -> None:
    """Paused, while input came."""
    c.config(f"{model()}\n{source()}", model=LOGISTIC)
    rows = numbers(stream(500))
    c.write("events.jsonl", lines(rows[:200]))
    c.run()
    c.call("pause", "--reason", "maintenance", "--yes")
    c.run()
    c.write("events.jsonl", lines(rows[200:300]))
    c.write("events.jsonl", lines(rows[300:]), later=True)
    c.then("resume")


@case
def waiting(c: Case) -> None:
    """Commands that were given and that no run has taken up yet."""
    c.config(f"{model()}\n{source()}", model=LOGISTIC)
    rows = numbers(stream(600))
    c.write("events.jsonl", lines(rows[:150]))
    c.run()
    c.write("events.jsonl", lines(rows[150:300]))
    c.run()
    c.call("restore", "1", "--yes")
    c.write("events.jsonl", lines(rows[300:]), later=True)
    c.then("rollback --yes")


@case
def killed_in_a_rewind(c: Case) -> None:
    """Killed while it learned again what came since a version, without one source."""
    c.config(f"{model()}\n{source()}", model=LOGISTIC)
    rows = numbers(stream(700))
    for part in (rows[:150], rows[150:300], rows[300:400]):
        c.write("events.jsonl", lines(part))
        c.run()
    c.call("restore", "1", "--rewind", "--skip-source", "partner", "--yes")
    apart(_run_until_killed_learning_again, c.folder)
    c.write("events.jsonl", lines(rows[400:]), later=True)
    c.then("rollback --yes")


@case
def unlearned(c: Case) -> None:
    """A source and a range of lines were unlearned, and more of that source came."""
    c.config(f"{SMALL}\n{source()}")
    rows = stream(700)
    for part in (rows[:150], rows[150:300]):
        c.write("events.jsonl", lines(part))
        c.run()
    c.call("restore", "1", "--rewind", "--skip-source", "partner", "--skip-range",
           "events.jsonl:200-220", "--yes")  # fmt: skip
    c.run()
    c.write("events.jsonl", lines(rows[300:400]))
    c.run()
    c.write("events.jsonl", lines(rows[400:]), later=True)
    c.then("restore 1 --rewind --yes", "rollback --yes")


@case
def started_over(c: Case) -> None:
    """Begun anew with --fresh, and a version of before put live again."""
    c.config(f"{model()}\n{source()}", model=LOGISTIC)
    rows = numbers(stream(500))
    c.write("events.jsonl", lines(rows[:150]))
    c.run()
    c.write("events.jsonl", lines(rows[150:200]))
    apart(_run_fresh, c.folder)
    c.call("restore", "1", "--yes")
    c.run()
    c.write("events.jsonl", lines(rows[200:]), later=True)
    c.then("rollback --yes")


def _run_fresh(folder: Path) -> None:
    settings = load(folder / life.CONFIG)
    online.run(settings, until_eof=True, fresh=online.archive(settings))


@case
def taken_over(c: Case) -> None:
    """A model in the registry that was another state's: `run --adopt`, and a restore of that."""
    places = 'registry = "registry.db"\nartifacts = "artifacts"'
    c.config(f"{model()}\n{source()}", model=LOGISTIC, versions=places)
    rows = numbers(stream(500))
    c.write("events.jsonl", lines(rows[:150]))
    c.run()
    other = (c.folder / "state" / "identity").read_text().strip()
    for folder in ("state", "out"):
        shutil.rmtree(c.folder / folder)
    c.write("events.jsonl", lines(rows[150:250]))
    apart(_run_adopting, c.folder)
    c.call("restore", "1", "--from", other, "--yes")
    c.run()
    c.write("events.jsonl", lines(rows[250:]), later=True)
    c.then("rollback --yes", f"restore 1 --from {other} --yes")


def _run_adopting(folder: Path) -> None:
    settings = load(folder / life.CONFIG)
    online.prepare(settings, joins=False)
    online.run(settings, until_eof=True, adopted_by="operator@host")


@case
def signed(c: Case) -> None:
    """Versions that are signed."""
    c.config(f"{model()}\n{source()}", model=LOGISTIC, versions='key = "a key of tests"')
    c.halves(numbers(stream(300)))
    c.run()
    c.then("restore 1 --yes")


@case
def elsewhere(c: Case) -> None:
    """Files of versions in S3: the folder `bucket` has what was there."""
    from s3_server import S3

    place = 'artifacts = "${OLD_ARTIFACTS}"'
    c.config(f"{model()}\n{source()}", model=LOGISTIC, versions=place)
    c.halves(numbers(stream(300)))

    @contextmanager
    def served(folder: Path) -> Iterator[None]:
        with S3() as s3:
            os.environ.update(s3.environment, OLD_ARTIFACTS=f"s3://{s3.bucket()}/prefix")
            apart(life.fill_bucket, os.environ["OLD_ARTIFACTS"], folder)
            yield

    with served(c.folder):
        c.run()
        apart(life.empty_bucket, os.environ["OLD_ARTIFACTS"], c.folder)
    c.served = served


@case
def postgres(c: Case) -> None:
    """A registry in PostgreSQL: `registry.sql` is its dump."""
    from postgres_server import Postgres, binaries

    c.config(f"{model()}\n{source()}", model=LOGISTIC, versions='registry = "${OLD_REGISTRY}"')
    rows = numbers(stream(500))

    @contextmanager
    def served(folder: Path) -> Iterator[None]:
        with Postgres() as server:
            os.environ["OLD_REGISTRY"] = server.database()
            life.fill_database(os.environ["OLD_REGISTRY"], folder)
            yield

    with served(c.folder):
        for number in range(3):
            c.write("events.jsonl", lines(rows[100 * number : 100 * number + 100]))
            c.run()
        c.call("tag", "2", "release")
        c.call("restore", "1", "--yes")
        c.run()
        c.call("rollback", "--yes")
        c.run()
        pg_dump = (binaries() / "initdb").resolve().with_name("pg_dump")
        dump = [str(pg_dump), "--inserts", "--no-owner", os.environ["OLD_REGISTRY"]]
        (c.folder / "registry.sql").write_bytes(subprocess.check_output(dump))
    c.served = served
    c.write("events.jsonl", lines(rows[300:]), later=True)
    c.then("restore 2 --yes", "rollback --yes")


@case
def topics(c: Case) -> None:
    """Topics of Kafka, with the journal in one: `brokers` has the log folders of the broker.

    Unlearned from, and then killed with a transaction that was open.
    """
    from kafka_client import Kafka

    names = ("predictions", "rejected", "alarms", "journal")
    outputs = "".join(f'{name} = "old.{name}"\n' for name in names)
    features = "".join(f'f{j} = "number"\n' for j in range(4)) + 'shop = "category"\n'
    c.config(
        f'{SMALL}\n[input]\ntopic = "old.in"',
        output=outputs,
        kafka='"bootstrap.servers" = "${OLD_KAFKA}"',
        features=features,
    )

    @contextmanager
    def served(folder: Path) -> Iterator[None]:
        with Cluster(folder=folder / "brokers") as cluster:
            os.environ["OLD_KAFKA"] = cluster.bootstrap
            yield

    with served(c.folder):
        kafka = Kafka(os.environ["OLD_KAFKA"])
        forever = {"retention.ms": -1}  # it will be years old
        kafka.create_topic("old.in", 3, forever)
        for name in names:
            kafka.create_topic(f"old.{name}", 3, forever)
        rows = without_text(stream(1_500))
        for part in (rows[:300], rows[300:600]):
            life.produce(kafka, "old.in", part)
            c.run()
        c.call("restore", "1", "--rewind", "--skip-source", "partner", "--yes")
        kafka.produce("old.in", [(None, b"no event", 1), (None, None, 2)])
        c.run()
        life.produce(kafka, "old.in", rows[600:1_200])
        apart(_run_until_killed_in_a_transaction, c.folder)
    c.write("more/old.in.jsonl", lines(rows[1_200:]))
    for path in (c.folder / "brokers").rglob("*"):
        if path.suffix in (".index", ".timeindex", ".log") and (
            path.suffix != ".log" or path.parent.name == "brokers"
        ):
            path.unlink()  # a broker makes indexes anew; what it logged is of no use
    (c.folder / "brokers" / "node-1.properties").unlink()  # which every start writes
    c.served = served
    c.then("restore 1 --yes", "rollback --yes")


def _run_until_killed_in_a_transaction(folder: Path) -> None:
    from midstream.connectors.kafka.journal import KafkaJournal

    written, write, commit = 0, KafkaJournal.write, KafkaJournal.commit

    def count(self: KafkaJournal, output: str, data: bytes) -> None:
        nonlocal written
        write(self, output, data)
        written += data.count(b"\n") if output == "predictions" else 0

    def end(self: KafkaJournal, entries: Any, about: Any = None) -> int:
        if written >= 250:
            self._flush()
            self._producer.flush(10.0)
            os.kill(os.getpid(), signal.SIGKILL)
        return commit(self, entries, about)

    KafkaJournal.write, KafkaJournal.commit = count, end
    online.run(load(folder / life.CONFIG), until_eof=True)
    raise RuntimeError("it ended by itself")


# --- trainers that were saved


def trainers(folder: Path) -> dict[str, Any]:
    """Save trainers to files; return their digests, before and after some more events."""
    from river import compose, forest, linear_model, preprocessing

    scaled = compose.SelectType(float) | preprocessing.StandardScaler()
    made = {
        "phishing": Trainer(
            preprocessing.StandardScaler() | linear_model.LogisticRegression(),
            task="binary",
            metrics=["accuracy", "roc_auc"],
        ),
        "regression": Trainer(scaled | linear_model.LinearRegression(), drift=["page_hinkley"]),
        "forest": Trainer(
            compose.SelectType(float) | forest.ARFClassifier(n_models=2, seed=1),
            task="multiclass", labels="text", replay=20, window=30, drift=[],
        ),
    }  # fmt: skip
    found = {}
    for name, trainer in made.items():
        if name == "phishing":
            from river import datasets

            rows = [{"x": dict(x), "y": bool(y)} for x, y in datasets.Phishing().take(300)]
        else:
            rows = [{"x": r["x"], "y": r["y"]} for r in stream(300, task=trainer.task) if "y" in r]
        middle = len(rows) // 2
        for row in rows[:middle]:
            trainer.step_one(row["x"], row["y"])
        trainer.save(folder / f"{name}.trainer")
        digest, seen = trainer.digest(), trainer.seen
        rest = rows[middle:]
        (folder / f"{name}.json").write_text(json.dumps(rest))
        values = [trainer.step_one(row["x"], row["y"]).y_pred for row in rest]
        found[name] = {
            "digest": digest, "seen": seen, "after": trainer.digest(),
            "predictions": hashlib.sha256(json.dumps(values).encode()).hexdigest(),
        }  # fmt: skip
    return found


# --- all of it


def measure(c: Case, work: Path) -> dict[str, Any]:
    """Return what this code says of a case, each in a copy that is somewhere else."""

    def asked(name: str, *functions: Callable[[Path], Any]) -> list[Any]:
        folder = life.copied(c.folder, work / name)
        with c.served(folder):
            return [apart(function, folder) for function in functions]

    found = dict(
        zip(
            ("check", "versions", "history", "read"),
            asked("read", life.check, life.versions, life.history, life.run),
            strict=True,
        )
    )
    found["whole"] = asked("whole", life.add_more, life.run)[1]
    steps: list[Callable[[Path], Any]] = [life.run]
    for command in c.operations:
        steps += [lambda folder, command=command: life.call(folder, *command), life.run]
    results = asked("operated", *steps)[2::2]
    operations = [
        {"command": command, "after": after}
        for command, after in zip(c.operations, results, strict=True)
    ]
    return {**found, "operations": operations}


def main() -> None:
    """Make the cases that are named, or all."""
    target = Path(sys.argv[1]).absolute()
    target.mkdir(parents=True, exist_ok=True)
    file = target / "manifest.json"
    names = sys.argv[2:] or [*CASES, "trainers"]
    manifest = json.loads(file.read_text()) if sys.argv[2:] and file.exists() else {"cases": {}}
    manifest["libraries"], manifest["arithmetic"] = life.libraries(), life.arithmetic()
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder, "made")
            place.mkdir()
            if name == "trainers":
                manifest["trainers"] = apart(trainers, place)
            else:
                made = Case(place)
                CASES[name](made)
                kept = life.copied(place, Path(folder, "kept"))
                shutil.rmtree(place)
                made.folder = kept  # where the state was made is gone
                told = {"about": CASES[name].about, **measure(made, Path(folder))}
                manifest["cases"][name] = told
                place = kept
            life.pack(place, target / f"{name}.tar.zst")
        size = (target / f"{name}.tar.zst").stat().st_size
        print(f"{name}: {size:,} bytes", flush=True)
        file.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
