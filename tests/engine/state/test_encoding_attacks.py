"""What a file that nobody's `encode` wrote can do: nothing but be refused, or be data."""

import functools
import json
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import types

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import compose, stats
from zoo import ZOO, events

from midstream.engine.state.allowed import EncodingError
from midstream.engine.state.encoding import SCHEMA, decode, encode

HEAD = encode(None)[:20]


@functools.cache
def learned(name) -> bytes:
    """Return the state of a model of the zoo after some events."""
    task, make = ZOO[name]
    model = make()
    for x, y in events(task, 200):
        model.predict_one(x)
        model.learn_one(x, y)
    return encode(model)


def forged(*nodes, constants=(), blobs=()):
    """Return a file of these rows: (kind, names, references, values); the root refers to 1."""
    kinds, shapes, tables = {}, {}, []
    for rows in (constants, [("list", [], [0], [1]), *nodes]):
        table = []
        for kind, names, references, values in rows:
            shape = (kinds.setdefault(kind, len(kinds)), tuple(references), tuple(names))
            table.append([*values, shapes.setdefault(shape, len(shapes))])
        tables.append(table)
    return HEAD + msgspec.msgpack.encode([[*kinds], [*shapes], list(blobs), *tables])


def obj(kind, names=(), references=(), values=()):
    return (kind, list(names), list(references), list(values))


def refers_to(name):
    """Return a file whose root is a list holding the function or class of that name."""
    return forged(obj("list", (), [0], [-1]), constants=[obj("reference", (), (), [name])])


def test_forged_files_are_read_where_they_are_harmless():
    """The forger of these tests writes what the reader reads: refusals are not its mistakes."""
    assert decode(refers_to("builtins:float")) == [float]
    assert decode(refers_to("river.stats.mean:Mean")) == [stats.Mean]
    mean = decode(forged(obj("river.stats.mean:Mean", ["n", "_mean"], (), [1, 2.5])))
    assert mean.get() == 2.5


NAMES = [
    "river.datasets.base:os.system", "numpy:f2py.os.system", "os:system", "posix:system",
    "builtins:eval", "builtins:exec", "builtins:getattr", "builtins:__import__", "builtins:open",
    "builtins:type", "builtins:object", "subprocess:Popen", "river.utils.math:math.os",
    "river.utils.math:math", "river.base.base:inspect.os.system", "river.base.base:inspect",
    "river.compose.pipeline:base.Transformer", "river.stats:Mean", "river.api:stats",
    "river.datasets.phishing:Phishing", "river.stream.iter_csv:iter_csv", "river.compat:sys",
    "river.drift.datasets.base:ChangePointFileDataset", "river.evaluate.progressive_validation:x",
    "river.bandit.base:Policy", "river.bandit.evaluate:evaluate", "river.bandit:EpsilonGreedy",
    "river.bandit.envs.testbed:KArmedTestbed", "river.bandit.evaluate:evaluate_offline",
    "river.bandit.datasets.news:NewsArticles", "river.bandit.epsilon_greedy:EpsilonGreedy._pull",
    "river.bandit.epsilon_greedy:math", "river.bandit.epsilon_greedy:bandit.base.Policy",
    "river.bandit.lin_ucb:LinUCBDisjoint", "river.bandit.epsilon_greedy:EpsilonGreedyOther",
    "operator:itemgetter", "operator:getitem",
    "river.checks:check_estimator", "river:stats", "river:__version__",
    "river.tree.hoeffding_tree:HoeffdingTree.__init__.__globals__", "functools:reduce",
    "river.tree.hoeffding_tree:HoeffdingTree.__init__", "river.stats.mean:Mean.__class__",
    "operator:attrgetter", "operator:methodcaller", "pickle:loads", "importlib:import_module",
    "midstream.engine.state.encoding:decode", "midstream.engine.state.encoding:_Reader",
    "numpy:load",
    "numpy:fromfile", "numpy.lib.npyio:load", "ctypes:CDLL", "shutil:rmtree", "builtins:str.format",
    "builtins:breakpoint", "", ":", "os:", ":system", "river.:x", "river..stats:Mean", "..os:x",
    "river.stats.mean:", "river.stats.mean:.Mean", "river.stats.mean:Mean:Mean", "os.system",
    "river/stats:x", "river.\0:x", "random:Random.seed", "river.no_such_module:x", "reference",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_no_name_leads_to_code_that_is_not_a_models(name):
    """As a function or class to hold, and as the class of an object, each is refused."""
    with pytest.raises(EncodingError):
        decode(refers_to(name))
    with pytest.raises(EncodingError):
        decode(forged(obj(name, (), (), [])))


def stream(module, name, *arguments):
    """Return a pickle that calls a function."""

    def text(s):
        return pickle.SHORT_BINUNICODE + bytes([len(s)]) + s.encode()

    call = text(module) + text(name) + pickle.STACK_GLOBAL
    call += pickle.MARK + b"".join(map(text, arguments)) + pickle.TUPLE + pickle.REDUCE
    return b"\x80\x04" + call + b"."


PICKLES = {
    "the shell through a data set": stream("river.datasets.base", "os.system", "true"),
    "the shell through NumPy": stream("numpy", "f2py.os.system", "true"),
    "REDUCE": stream("os", "system", "true"),
    "eval": stream("builtins", "eval", "1"),
    "exec": stream("builtins", "exec", "1"),
    "getattr": stream("builtins", "getattr", "a", "b"),
    "Popen": stream("subprocess", "Popen", "true"),
    "INST": b"(S'true'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'true'\no.",
    "NEWOBJ": b"\x80\x02csubprocess\nPopen\n)\x81.",
    "BUILD": b"\x80\x02criver.stats.mean\nMean\n}X\x01\x00\x00\x00aK\x01sb.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "PERSID": b"Pid\n.",
    "a partial of the shell": pickle.dumps(functools.partial(os.system, "true")),
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_is_no_state(name):
    """With our head or without, pickles are refused: nothing here unpickles."""
    for data in (PICKLES[name], HEAD + PICKLES[name]):
        with pytest.raises(EncodingError):
            decode(data)


SYSTEM = obj("reference", (), (), ["os:system"])
LOWER = obj("reference", (), (), ["builtins:str.lower"])
PARTIAL = ("partial", [], [0, 1, 2], [-1, -2, 2, None])
EMPTY = [obj("tuple"), obj("dict")]


GETTER = obj("list", (), [0], [-1])
ABUSES = {
    "an itemgetter of nothing": forged(GETTER, constants=[obj("itemgetter")]),
    "an itemgetter of a number": forged(GETTER, constants=[obj("itemgetter", (), (), [0])]),
    "an itemgetter of a function": forged(
        obj("list", (), [0], [-2]), constants=[LOWER, obj("itemgetter", (), [0], [-1])]
    ),
    "an itemgetter of objects": forged(
        GETTER, obj("list"), constants=[obj("itemgetter", (), [0], [2])]
    ),
    "an itemgetter of a tuple": forged(
        obj("list", (), [0], [-2]),
        constants=[obj("tuple", (), (), [1]), obj("itemgetter", (), [0], [-1])],
    ),
    "an itemgetter among the nodes": forged(obj("itemgetter", (), (), ["a"])),
    "a policy that is called": forged(
        obj("list", (), [0], [-1]), obj("river.bandit.epsilon_greedy:EpsilonGreedy"),
        constants=[obj("method", (), [0], [2, "__post_init__"])],
    ),
    "a policy's method": forged(
        obj("list", (), [0], [-1]), obj("river.bandit.epsilon_greedy:EpsilonGreedy"),
        constants=[obj("method", (), [0], [2, "pull"])],
    ),
    "a partial of the shell": forged(PARTIAL, obj("dict"), constants=[SYSTEM, obj("tuple")]),
    "a partial of a partial": forged(
        ("partial", [], [0, 1, 2], [1, -1, 2, None]), obj("dict"), constants=[obj("tuple")]
    ),
    "a partial without a function": forged(("partial", [], [], [1, 2, 3, 4])),
    "the state of a class": forged(
        obj("list"), constants=[obj("river.stats.mean:Mean", ["n"], (), [1])]
    ),
    "a reference among the nodes": forged(SYSTEM),
    "a method that is private": forged(
        obj("list", (), [0], [-1]), obj("river.stats.mean:Mean"),
        constants=[obj("method", (), [0], [2, "__init__"])],
    ),
    "a method that is a builtin's": forged(
        obj("list", (), [0], [-1]), constants=[obj("method", (), [0], [1, "append"])]
    ),
    "a method that is not there": forged(
        obj("list", (), [0], [-1]), obj("river.stats.mean:Mean"),
        constants=[obj("method", (), [0], [2, "no"])],
    ),
    "a method of a function": forged(
        obj("list", (), [0], [-2]), constants=[LOWER, obj("method", (), [0], [-1, "join"])]
    ),
    "a factory that is no function": forged(obj("defaultdict", (), (), [1])),
    "a vector's factory that is no function": forged(
        obj("river._river_rust.vectordict:VectorDict", (), (), [1, None])
    ),
    "a state that a compiled class cannot have": forged(
        obj("river._river_rust.stats:RsQuantile", (), [0], [2]), obj("list")
    ),
    "a damaged state of a compiled class": forged(
        obj("river._river_rust.drift:AdaptiveWindowing", (), [0], [-1]),
        constants=[obj("bytes", (), (), [0])], blobs=[b"\xff" * 20],
    ),
    "a __setstate__ of something else": forged(
        obj("river.preprocessing.scale:StandardScaler", ["a"], [0], [9])
    ),
    "an abstract class": forged(obj("river.base.classifier:Classifier")),
    "an array of objects": forged(
        obj("ndarray", (), [0], [-1, "|O", "C", 1]), constants=[obj("blob", (), (), [0])],
        blobs=[b"\0" * 8],
    ),
    "an array larger than its data": forged(
        obj("ndarray", (), [0], [-1, "<f8", "C", 2**40]), constants=[obj("blob", (), (), [0])],
        blobs=[b"\0" * 8],
    ),
    "an array of empty strings": forged(
        obj("ndarray", (), [0], [-1, "<U0", "C", 2**40]), constants=[obj("blob", (), (), [0])],
        blobs=[b""],
    ),
    "an array of negative size": forged(
        obj("ndarray", (), [0], [-1, "<f8", "C", -1, -1]), constants=[obj("blob", (), (), [0])],
        blobs=[b"\0" * 8],
    ),
    "many arrays of the same bytes": forged(
        obj("list", (), [0, 1], [2, 3]), *[obj("ndarray", (), [0], [-1, "<f8", "C", 1])] * 2,
        constants=[obj("blob", (), (), [0])], blobs=[b"\0" * 8],
    ),
    "a generator that reads beyond its state": forged(
        obj("MT19937", (), (), [0] * 624 + [10**9])
    ),
    "a generator of nothing": forged(obj("Generator", (), [0], [2]), obj("list")),
    "a generator of Python out of its state": forged(
        obj("Random", (), (), [0] * 624 + [10**9, 3, None])
    ),
    "a key that takes for ever to hash": forged(
        obj("dict", (), [0], [-61, 1]),
        constants=[obj("tuple", (), (), [1]),
                   *[obj("tuple", (), [0, 1], [-k, -k]) for k in range(1, 61)]],
    ),
    "a key too deep to hash": forged(
        obj("dict", (), [0], [-20_001, 1]),
        constants=[obj("tuple", (), (), [1]),
                   *[obj("tuple", (), [0], [-k]) for k in range(1, 20_001)]],
    ),
    "a constant among the nodes by another number": forged(
        obj("dict", (), [0], [4, 1]), constants=[obj("tuple"), obj("tuple", (), [0], [3])],
    ),
    "deques too deep to be freed": forged(
        *[obj("deque", (), [0], [k, None]) for k in range(2, 20_002)], obj("list")
    ),
    "defaultdicts too deep to be freed": forged(
        *[obj("defaultdict", (), [1], ["k", k, None]) for k in range(2, 20_002)], obj("list")
    ),
    "a deque in itself": forged(obj("deque", (), [0], [1, None])),
    "a row that is too short": forged(obj("dict", ["a", "b"], (), [1])),
    "a reference that is none": forged(obj("list", (), [0], [99])),
    "a reference that is no number": forged(obj("list", (), [0], ["a"])),
    "a reference before the row": forged(obj("list", (), [-2], [1, 2])),
    "a reference beyond the row": forged(obj("list", (), [7], [1])),
    "a key without a hash": forged(obj("dict", (), [0], [2, 1]), obj("list")),
    "a set of lists": forged(obj("set", (), [0], [2]), obj("list")),
    "a constant of what comes later": forged(
        obj("list", (), [0], [-1]), constants=[obj("tuple", (), [0], [-2]), obj("tuple")]
    ),
    "an object made of itself": forged(obj("Generator", (), [0], [1])),
    "attributes of a list": forged(obj("list", ["append"], (), [])) + b"x",
    "no rows": HEAD + msgspec.msgpack.encode([[], [], [], [], []]),
    "an unknown kind": forged(obj("no kind")),
    "an array with 2**32 items": HEAD + b"\xdd\xff\xff\xff\xff" * 5,
    "bytes without end": HEAD + b"\x95\x90\x90\x91\xc6\xff\xff\xff\xff",
    "nothing": b"",
    "text": b"midstream-state",
}  # fmt: skip


@pytest.mark.parametrize("name", ABUSES)
def test_a_forged_file_is_refused(name):
    """Each raises EncodingError, in one line, at once and without much memory."""
    data = ABUSES[name]
    tracemalloc.start()
    with pytest.raises(EncodingError) as caught:
        decode(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    limit = 2_000_000 + 300 * len(data)
    assert peak < limit, f"{peak} B for {len(data)} B; limit {limit} B"


def test_attributes_of_a_file_stay_attributes():
    """A file can set an object's attributes, but no property, no slot of its class, no class."""
    data = forged(
        obj(
            "river.compose.func:FuncTransformer",
            ["__class__", "__dict__", "_supervised", "func"],
            [3],
            ["a", "b", "c", -1],
        ),
        constants=[LOWER],
    )
    value = decode(data)
    assert type(value) is compose.FuncTransformer
    assert value._supervised is False
    assert vars(value)["__dict__"] == "b"
    assert compose.FuncTransformer.__dict__.get("func") is None


def test_another_schema_is_refused_with_both_versions():
    """The message names the file's schema and ours."""
    data = bytearray(encode(None))
    data[16:20] = struct.pack("<I", SCHEMA + 41)
    with pytest.raises(EncodingError, match=f"schema {SCHEMA + 41}, this Midstream reads {SCHEMA}"):
        decode(bytes(data))


@pytest.mark.parametrize("name", ["LogisticRegressionNormal", "KNN", "ADWINBagging"])
def test_a_truncated_file_is_refused(name):
    """Cut anywhere, a file is refused."""
    data = learned(name)
    for end in range(0, len(data), 1 + len(data) // 300):
        with pytest.raises(EncodingError):
            decode(data[:end])


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_file_gives_an_error_or_a_value(data):
    """Whatever bytes are changed, there is a value or an EncodingError, and nothing else."""
    name = data.draw(st.sampled_from(["LogisticRegressionNormal", "HardSampling", "OutputCode"]))
    state = bytearray(learned(name))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(20, len(state) - 1))
        state[at] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(state))
    except EncodingError:
        return


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_give_an_error_or_a_value(data):
    """The same for bytes that never were a file."""
    with pytest.raises(EncodingError):
        decode(data)
    try:
        decode(HEAD + data)
    except EncodingError:
        return


def test_reading_damaged_files_runs_nothing():
    """Thousands of damaged and forged files start no process, run no code, import only River."""
    program = """
import random, sys, json
sys.path[:0] = json.loads(sys.argv[1])
from zoo import ZOO, events
import midstream.engine.state.encoding as encoding
files = [bytes.fromhex(line) for line in sys.stdin.read().split()]
for data in files[:5]:
    try:
        encoding.decode(data)
    except encoding.EncodingError:
        pass
seen = []
QUIET = {"object.__getattr__", "object.__setattr__", "object.__delattr__", "sys._getframe",
         "code.__new__", "array.__new__", "builtins.id", "marshal.loads", "os.listdir",
         "gc.get_objects", "gc.get_referrers", "gc.get_referents", "cpython.PyInterpreterState_New"}
def hook(event, arguments):
    if event in ("import", "open"):
        name = str(arguments[0])
        if event == "import" and not name.split(".")[0] in ("river", "midstream"):
            seen.append((event, name))
        if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            seen.append((event, name))
    elif event not in QUIET:
        seen.append((event, str(arguments)[:200]))
sys.addaudithook(hook)
rng = random.Random(1)
count = 0
for data in files:
    for i in range(int(sys.argv[2])):
        damaged = bytearray(data)
        for _ in range(i and rng.randint(1, 5)):
            damaged[rng.randrange(20, len(damaged))] = rng.randrange(256)
        try:
            encoding.decode(bytes(damaged))
        except encoding.EncodingError:
            count += 1
print(json.dumps([count, seen]))
"""
    small = [data for data in ABUSES.values() if 21 < len(data) < 10_000]
    files = [learned("LogisticRegressionNormal"), learned("OutputCode"), learned("ADWINBagging")]
    files += [*map(refers_to, NAMES), *small]
    run = subprocess.run(
        [sys.executable, "-c", program, json.dumps(sys.path), "25"],
        input="\n".join(data.hex() for data in files),
        text=True,
        capture_output=True,
        check=True,
        env={**os.environ, "RUST_BACKTRACE": "0"},
    )
    count, seen = json.loads(run.stdout.splitlines()[-1])
    assert seen == []
    assert count > 1_000


def test_a_module_of_the_user_gives_only_what_it_defines():
    """What the user's module imports is not allowed by allowing the module."""
    module = types.ModuleType("factory_of_a_user")
    exec("import os\nfrom os import system\ndef fine(x):\n    return x\n", vars(module))  # noqa: S102
    sys.modules[module.__name__] = module
    try:
        modules = [module.__name__]
        assert decode(encode(module.fine, modules=modules), modules=modules) is module.fine
        for name in ("os.system", "system", "os"):
            with pytest.raises(EncodingError):
                decode(refers_to(f"factory_of_a_user:{name}"), modules=modules)
        with pytest.raises(EncodingError):
            decode(refers_to("factory_of_a_user.fine:x"), modules=modules)
        with pytest.raises(EncodingError):
            encode(module.system, modules=modules)
    finally:
        del sys.modules[module.__name__]


class Closing:
    """A class of the user's with a ``__del__``."""

    def __del__(self):
        pass


def test_a_class_that_acts_when_it_is_freed_is_refused():
    """A ``__del__`` would act on whatever attributes a file gives it."""
    with pytest.raises(EncodingError, match="__del__"):
        encode(Closing(), modules=[__name__])
    with pytest.raises(EncodingError, match="__del__"):
        decode(forged(obj(f"{__name__}:Closing")), modules=[__name__])
