"""The files of versions: what was written is read, or refused in one line that says what is wrong.

On a local folder and on an object store.
"""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from itertools import count
from pathlib import Path

import fsspec
import msgspec
import pytest
import registry_lives as lives
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from river import linear_model

from midstream.engine.basics import storage
from midstream.engine.registry import artifacts
from midstream.engine.registry.artifacts import (
    SCHEMA,
    ArtifactError,
    Artifacts,
    Manifest,
    ShardPart,
    StoreError,
)
from midstream.engine.training.trainer import Trainer

PARTS = {"learner": b"abc" * 400, "metrics": b"", "replay": bytes(range(256)) * 9}
HEADER = {"seq": 7, "seen": 100, "metrics": {"accuracy": 1, "roc_auc": None}, "far": 2**62}
KEY = b"a key of the tests"
FULL = """
import sys
from midstream.engine.registry.artifacts import Artifacts, StoreError
artifacts = Artifacts(sys.argv[1], "fraud")
import os
try:
    artifacts.write_part(1, "000", {}, {"learner": os.urandom(500_000)})
except StoreError as error:
    print(error)
print(artifacts._names(1))
artifacts.write_part(2, "000", {}, {"learner": b"small"})
print(artifacts._names(2))
"""
ON_A_SMALL_DISK = """
mount -t tmpfs -o size=100000 none "$1" || exit 99
exec "$2" -c "$3" "$1/artifacts"
"""


@pytest.fixture(params=["folder", "s3"])
def place(request, tmp_path):
    """Where artifacts are."""
    if request.param == "folder":
        return str(tmp_path / "artifacts")
    return request.getfixturevalue("s3_url")


def manifest_of(*parts: ShardPart, version=7) -> Manifest:
    return Manifest(
        model="fraud",
        version=version,
        parent=0,
        kind="online",
        reason="manual",
        created=1,
        learner={"kind": "river", "river": "0.1"},
        fingerprint="f",
        libraries={"python": "3"},
        data={},
        metrics={part.shard: part.header["metrics"] for part in parts},
        shards=list(parts),
    )


class Made:
    """A version of two shards in a store, and a hand that gets at its files."""

    def __init__(self, place, key=None) -> None:
        self.artifacts = Artifacts(place, "fraud", key=key)
        written = [
            self.artifacts.write_part(7, shard, HEADER, PARTS | {"drift": shard.encode()})
            for shard in ("000", "001")
        ]
        self.manifest = manifest_of(*written)
        self.sha256 = hashlib.sha256(self.artifacts.write_manifest(self.manifest)).hexdigest()
        self.files, root = fsspec.core.url_to_fs(str(place))
        self.folder = f"{root}/fraud/00000007"

    def get(self, name) -> bytes:
        self.files.invalidate_cache()
        return self.files.cat_file(f"{self.folder}/{name}")

    def set(self, name, data) -> None:
        path = f"{self.folder}/{name}"
        self.files.makedirs(path.rpartition("/")[0], exist_ok=True)
        self.files.pipe_file(path, data)

    def remove(self, name) -> None:
        self.files.rm_file(f"{self.folder}/{name}")

    def names(self) -> list[str]:
        self.files.invalidate_cache()
        found = self.files.find(self.folder) if self.files.exists(self.folder) else []
        return sorted(path.removeprefix(self.folder + "/") for path in found)

    def forge(self, part, data, **changes) -> Manifest:
        """Put a file in the place of a part, and have the manifest agree with it."""
        self.set(f"000/{part}.zst", data)
        sums = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} | changes
        return self.rewritten(lambda m: m["shards"][0]["files"][part].update(sums))

    def rewritten(self, change) -> Manifest:
        """Change the manifest, and read it as one whose sum is right."""
        raw = json.loads(self.get("manifest.json"))
        change(raw)
        data = json.dumps(raw).encode()
        self.set("manifest.json", data)
        return self.artifacts.manifest(7, hashlib.sha256(data).hexdigest())


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path / "artifacts")


@pytest.fixture
def anywhere(place):
    """What is made on each kind of store."""
    return Made(place)


def refused(error, *words) -> None:
    """Check that an error says in one line of which version what is wrong."""
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 300, f"{len(text)} characters; limit 300"
    for word in words:
        assert word in text


def test_what_is_written_is_read(anywhere):
    """Manifest and parts of each shard come back as they were."""
    found = anywhere.artifacts.manifest(7, anywhere.sha256)
    assert found == msgspec.structs.replace(anywhere.manifest, signature=found.signature)
    for shard in ("000", "001"):
        assert anywhere.artifacts.read_part(found, shard) == PARTS | {"drift": shard.encode()}
        assert found.part(shard).header == HEADER
    assert anywhere.artifacts.problems(found) == []
    assert found.bytes == sum(len(anywhere.get(n)) for n in anywhere.names() if n.endswith(".zst"))


def test_the_same_again_changes_nothing(anywhere):
    """Parts and manifest written twice are the same bytes: who comes second does no harm."""
    before = {name: anywhere.get(name) for name in anywhere.names()}
    Made(anywhere.artifacts.place)
    assert {name: anywhere.get(name) for name in anywhere.names()} == before


def test_no_file_is_anywhere_else(made):
    """A version is its manifest and a file for each part, and nothing else is left behind."""
    shards = [f"{s}/{p}.zst" for s in ("000", "001") for p in sorted([*PARTS, "drift"])]
    assert made.names() == [*shards, "manifest.json"]


def test_a_shard_that_it_does_not_have_is_named(made):
    """Who asks for another shard is told which there are."""
    with pytest.raises(ArtifactError) as error:
        made.artifacts.read_part(made.manifest, "002")
    refused(error, "version 7 has no shard 002", "it has: 000, 001")


@pytest.mark.parametrize("length", [0, 1, 9, -1])
def test_a_truncated_part_is_named(made, length):
    """A part cut anywhere is refused with both lengths; the other shard's can be read."""
    made.set("000/learner.zst", made.get("000/learner.zst")[:length])
    with pytest.raises(ArtifactError) as error:
        made.artifacts.read_part(made.manifest, "000")
    refused(error, "version 7: 000/learner.zst is damaged", "were written")
    assert made.artifacts.problems(made.manifest) == [str(error.value)]
    assert made.artifacts.read_part(made.manifest, "001")


def test_a_flipped_bit_is_named(made):
    """A part of the right length and other content is refused."""
    data = bytearray(made.get("001/replay.zst"))
    data[len(data) // 2] ^= 1
    made.set("001/replay.zst", bytes(data))
    with pytest.raises(ArtifactError) as error:
        made.artifacts.read_part(made.manifest, "001")
    refused(error, "version 7: 001/replay.zst is damaged: its SHA-256 differs")


def test_a_missing_part_is_named(made):
    """A part that is not there is refused, by its name."""
    made.remove("001/metrics.zst")
    with pytest.raises(ArtifactError) as error:
        made.artifacts.read_part(made.manifest, "001")
    refused(error, "version 7: 001/metrics.zst is missing")


def test_all_that_is_wrong_is_told_at_once(anywhere):
    """A check names every part that is missing, damaged or no part; drafts of a crash are none."""
    anywhere.remove("000/drift.zst")
    anywhere.set("001/learner.zst", b"x")
    anywhere.set("001/weights.zst", b"x")
    anywhere.set("notes.txt", b"x")
    anywhere.set("001/.learner.zst.0123.draft", b"x")
    problems = anywhere.artifacts.problems(anywhere.manifest)
    assert [line.split(" is ")[0] for line in problems] == [
        "version 7: 000/drift.zst",
        "version 7: 001/learner.zst",
        "version 7: 001/weights.zst",
        "version 7: notes.txt",
    ]
    assert problems[2] == "version 7: 001/weights.zst is no part of it"


def test_a_surplus_file_is_never_read(made):
    """What the manifest does not name has no effect on what is loaded."""
    made.set("000/surplus.zst", b"x")
    assert set(made.artifacts.read_part(made.manifest, "000")) == {*PARTS, "drift"}


@pytest.mark.parametrize("change", ["truncated", "flipped", "other"])
def test_a_manifest_that_was_not_registered_is_refused(anywhere, change):
    """Whatever byte of it differs, also where it is a manifest still."""
    data = anywhere.get("manifest.json")
    changed = {
        "truncated": data[: len(data) // 2],
        "flipped": data.replace(b'"manual"', b'"manuel"'),
        "other": data.replace(b'"version": 7', b'"version": 8'),
    }
    anywhere.set("manifest.json", changed[change])
    with pytest.raises(ArtifactError) as error:
        anywhere.artifacts.manifest(7, anywhere.sha256)
    refused(error, "version 7: manifest.json is damaged: it is not what was registered")


def test_a_missing_manifest_is_named(anywhere):
    """Without it nothing is known of a version."""
    anywhere.remove("manifest.json")
    with pytest.raises(ArtifactError) as error:
        anywhere.artifacts.manifest(7, anywhere.sha256)
    refused(error, "version 7: manifest.json is missing")


def test_a_manifest_of_a_newer_schema_is_refused_with_both(made):
    """It is not guessed at, whatever else stands in it."""
    with pytest.raises(ArtifactError) as error:
        made.rewritten(lambda raw: (raw.clear(), raw.update(schema=SCHEMA + 1, new=True)))
    refused(error, f"version 7: manifest.json has schema {SCHEMA + 1}", f"reads {SCHEMA};")


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b'{"schema": 1}', b"\xff\xfe", b'{"schema": 1, "model": "\xff"}',
     b"[" * 100_000, b'{"schema":' * 100_000, pickle.dumps({"schema": 1})],
)  # fmt: skip
def test_what_is_no_manifest_is_refused(tmp_path, data):
    """Anything else in its place is damage, and named."""
    made = Made(tmp_path)
    made.set("manifest.json", data)
    with pytest.raises(ArtifactError) as error:
        made.artifacts.manifest(7)
    refused(error, "version 7: manifest.json ")


@pytest.mark.parametrize(("field", "value"), [("model", "other"), ("version", 8)])
def test_a_manifest_of_another_version_or_model_is_refused(made, field, value):
    """One that was copied here is not taken for ours."""
    with pytest.raises(ArtifactError) as error:
        made.rewritten(lambda raw: raw.update({field: value}))
    refused(error, "version 7: manifest.json is that of version", repr(value))


@pytest.mark.parametrize("name", [
    "../../../../etc/passwd", "/etc/passwd", "000/../../secret", "000/learner.zst/../../secret",
    "001/learner.zst", "000/metrics.zst", "secret", "", "000/learner.zst\0", "C:\\secret",
])  # fmt: skip
def test_a_manifest_gets_at_no_other_file(made, name):
    """A part is read from where it belongs; also a file with the right sums is not, elsewhere."""
    secret = made.get("000/learner.zst")
    for path in ("../secret", "secret"):
        made.set(path, secret)
    with pytest.raises(ArtifactError) as error:
        made.rewritten(lambda raw: raw["shards"][0]["files"]["learner"].update(name=name))
    refused(error, "version 7: manifest.json names a file that is no part of it")


@pytest.mark.parametrize("name", ["..", ".", "", "../..", "a/b", "/", "a\0", "..\\x", ".hidden"])
@pytest.mark.parametrize("of", ["shard", "part"])
def test_names_of_shards_and_parts_are_no_paths(tmp_path, name, of):
    """A manifest that agrees with itself on a name with a path in it is refused, too."""

    def change(raw):
        files = raw["shards"][0]["files"]
        learner = files.pop("learner")
        if of == "part":
            files[name] = learner | {"name": f"000/{name}.zst"}
        else:
            raw["shards"][0]["shard"] = name
            raw["shards"][0]["files"] = {"learner": learner | {"name": f"{name}/learner.zst"}}

    with pytest.raises(ArtifactError) as error:
        Made(tmp_path).rewritten(change)
    refused(error, "names a file that is no part of it")


class Bomb:
    """Makes a file where it is loaded by pickle."""

    def __init__(self, mark) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("part", ["trainer", "learner", "metrics", "drift", "replay"])
def test_a_pickle_in_the_place_of_a_part_is_never_loaded(tmp_path, part):
    """Nothing is executed: neither where its sums tell it, nor where the manifest agrees with it.

    The same file, when pickle loads it, does what it is made for.
    """
    mark = tmp_path / "executed"
    hostile = pickle.dumps(Bomb(mark))
    made = Made(tmp_path)
    state = Trainer(linear_model.LogisticRegression(), metrics=["accuracy"]).state()
    written = made.artifacts.write_part(7, "000", HEADER, state)
    made.artifacts.write_manifest(manifest_of(written))
    manifest = made.artifacts.manifest(7)
    assert Trainer.from_state(made.artifacts.read_part(manifest, "000")).state() == state
    good = made.get(f"000/{part}.zst")
    made.set(f"000/{part}.zst", hostile)
    with pytest.raises(ArtifactError, match=f"version 7: 000/{part}.zst is damaged"):
        made.artifacts.read_part(manifest, "000")
    made.set(f"000/{part}.zst", good)
    bare = made.forge(part, hostile, unpacked=len(hostile))
    with pytest.raises(ArtifactError, match=f"version 7: 000/{part}.zst is damaged"):
        made.artifacts.read_part(bare, "000")
    packed = made.forge(part, zstandard.compress(hostile), unpacked=len(hostile))
    parts = made.artifacts.read_part(packed, "000")
    with pytest.raises(ValueError):  # noqa: PT011 each part has words of its own; see `load`
        Trainer.from_state(parts)
    assert not mark.exists(), "the pickle was loaded"
    pickle.loads(hostile)
    assert mark.exists(), "the bomb is none"


def claiming(size) -> bytes:
    """Return a zstd frame that claims to be of this size, and holds three bytes."""
    frame = bytes.fromhex("28b52ffd") + bytes([0b11100000]) + size.to_bytes(8, "little")
    return frame + (1 | 3 << 3).to_bytes(3, "little") + b"abc"


@pytest.mark.parametrize("size", [10**6, 10**12, 2**50, 2**63, 2**64 - 3])
@pytest.mark.parametrize("agreed", [True, False])
def test_a_frame_that_claims_to_be_huge_is_refused(tmp_path, size, agreed):
    """No memory is taken for what a file cannot hold, whether the manifest agrees or not."""
    made = Made(tmp_path)
    forged = claiming(size)
    assert zstandard.frame_content_size(forged) == size, "a forged frame is read as one"
    unpacked = min(size, 2**63 - 1) if agreed else 1_200
    manifest = made.forge("learner", forged, unpacked=unpacked)
    with pytest.raises(ArtifactError) as error:
        made.artifacts.read_part(manifest, "000")
    refused(error, "version 7: 000/learner.zst is")


@pytest.mark.parametrize("unpacked", [-1, 0, 3, 1_199, 1_201])
def test_a_frame_of_another_size_than_the_manifest_says_is_refused(tmp_path, unpacked):
    """The length unpacked is checked before anything is."""
    made = Made(tmp_path)
    compressor = zstandard.ZstdCompressor(write_content_size=unpacked >= 0)
    manifest = made.forge("learner", compressor.compress(b"abc" * 400), unpacked=unpacked)
    with pytest.raises(ArtifactError) as error:
        made.artifacts.read_part(manifest, "000")
    refused(error, "version 7: 000/learner.zst is")


def test_what_packs_densest_is_read(tmp_path):
    """A state of nothing but noughts is no bomb."""
    store = Artifacts(tmp_path, "fraud")
    zeros = bytes(30_000_000)
    written = store.write_part(1, "000", HEADER, {"replay": zeros})
    ratio = len(zeros) / written.files["replay"].bytes
    found = store.read_part(manifest_of(written, version=1), "000")
    assert found == {"replay": zeros}, f"packed {ratio:,.0f} to 1"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4), st.floats() | st.integers(0, 9) | st.none())
def test_what_was_signed_is_what_is_read(header, metric):
    """Whatever stands in a header, a manifest that nobody changed has a right signature."""
    store = Artifacts("memory://signed", "fraud", key=KEY)
    part = ShardPart("000", header | {"metrics": {"m": metric}}, {})
    data = store.write_manifest(manifest_of(part))
    assert store.decoded(data, 7).signature


def test_a_signed_version_is_read_with_its_key_alone(place):
    """Unsigned, signed with another key, or changed with the sum set right: each is refused."""
    made = Made(place, KEY)
    assert made.artifacts.manifest(7, made.sha256).signature
    with pytest.raises(ArtifactError) as error:
        Artifacts(place, "fraud", key=b"another").manifest(7)
    refused(error, "version 7: manifest.json was signed with another key, or changed afterwards")
    with pytest.raises(ArtifactError) as error:
        made.forge("learner", zstandard.compress(b"evil"), unpacked=4)
    refused(error, "version 7: manifest.json was signed with another key, or changed afterwards")
    with pytest.raises(ArtifactError) as error:
        made.rewritten(lambda raw: raw.update(signature=""))
    refused(error, "version 7: manifest.json is not signed, and versions.key asks for that")
    with pytest.raises(ArtifactError):
        made.rewritten(lambda raw: raw.update(signature="é"))
    assert Artifacts(place, "fraud").manifest(7), "without a key nothing has to be signed"


def test_every_file_of_a_removed_version_is_gone(anywhere):
    """Also surplus ones and drafts; other versions stay, and again does nothing."""
    anywhere.set("001/.learner.zst.0123.draft", b"x")
    anywhere.set("notes.txt", b"x")
    other = anywhere.artifacts.write_part(8, "000", HEADER, PARTS)
    anywhere.artifacts.remove(7)
    anywhere.artifacts.remove(7)
    assert anywhere.names() == []
    assert anywhere.artifacts.read_part(manifest_of(other, version=8), "000") == PARTS
    if "://" not in anywhere.artifacts.place:
        assert not Path(anywhere.folder).exists()


def test_several_remove_and_write_the_same(place):
    """Processes that do the same at once do not get into each other's way."""
    made = Made(place)
    errors = []

    def run(work):
        try:
            for _ in range(3):
                work()
        except Exception as error:
            errors.append(error)

    def at_once(work):
        threads = [threading.Thread(target=run, args=(work,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors

    at_once(lambda: Made(place))
    found = made.artifacts.manifest(7, made.sha256)
    assert made.artifacts.problems(found) == []
    assert len(made.names()) == 9, made.names()
    at_once(lambda: made.artifacts.remove(7))
    assert made.names() == []


@pytest.mark.parametrize("work", ["part", "manifest", "remove"])
def test_who_writes_while_another_removes_gets_on(tmp_path, work):
    """At whatever point of one the other comes: neither fails, no draft stays, files are whole."""
    store = Artifacts(tmp_path, "fraud")
    works = {
        "part": lambda: store.write_part(7, "000", HEADER, PARTS),
        "manifest": lambda: store.write_manifest_again(7, b"manifest"),
        "remove": lambda: store.remove(7),
    }
    works["part"](), works["manifest"]()
    whole = {p.name: p.read_bytes() for p in (tmp_path / "fraud").rglob("*.*")}
    for at in count(1):
        works["part"](), works["manifest"]()
        other = works["part" if work == "remove" else "remove"]
        with lives.disturbed(at, other) as done:
            works[work]()
        files = {p.name: p.read_bytes() for p in (tmp_path / "fraud").rglob("*.*")}
        assert files.items() <= whole.items(), f"step {at}"  # and no draft
        store.remove(7)
        assert store.versions() == [], f"step {at}"
        if len(done) < at:
            break
    assert at > 10, "they did not meet"


def test_a_killed_writer_leaves_whole_files(tmp_path):
    """Whenever two that write the same are killed, every file that is there has its content."""
    made = Made(tmp_path)
    wanted = {name: made.get(name) for name in made.names()}
    for i in range(10):
        made.artifacts.remove(7)
        writers = [lives.start(lives.write, tmp_path, PARTS) for _ in range(2)]
        lives.kill_after(writers, 0.02 + 0.005 * i)
        found = {name for name in made.names() if not name.endswith(".draft")}
        damaged = [name for name in found if made.get(name) != wanted[name]]
        assert not damaged, f"after {20 + 5 * i} ms: {damaged}"


def test_names_of_folders_are_made_durable(tmp_path, monkeypatch):
    """After a loss of power, a part that was written is found: so are the folders it is in."""
    synced = []
    monkeypatch.setattr(
        storage.LocalStorage, "sync_folder", lambda self: synced.append(self.folder)
    )
    Artifacts(tmp_path / "artifacts", "fraud").write_part(1, "000", HEADER, {"learner": b"x"})
    version = tmp_path / "artifacts" / "fraud" / "00000001"
    assert set(synced) == {version / "000", version, version.parent, version.parent.parent}


def test_a_store_that_is_gone_is_no_damage(anywhere):
    """A folder that is not mounted may be back in a while: nothing is said of its versions."""
    if "://" in anywhere.artifacts.place:
        anywhere.files.rm(anywhere.folder.rpartition("/")[0], recursive=True)
    else:
        shutil.rmtree(anywhere.artifacts.place)
    for work in (
        lambda: anywhere.artifacts.manifest(7, anywhere.sha256),
        lambda: anywhere.artifacts.read_part(anywhere.manifest, "000"),
        lambda: anywhere.artifacts.problems(anywhere.manifest),
    ):
        with pytest.raises(StoreError) as error:
            work()
        refused(error, "fraud", "are not there")
    anywhere.artifacts.remove(7)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    """What stands in the way is told by its path."""
    (tmp_path / "fraud").write_text("no folder")
    store = Artifacts(tmp_path, "fraud")
    with pytest.raises(StoreError) as error:
        store.write_part(1, "000", {}, {"learner": b"x"})
    refused(error, str(tmp_path / "fraud"), "Not a directory")
    with pytest.raises(StoreError) as error:
        store.manifest(1)
    refused(error, str(tmp_path / "fraud"), "Not a directory")


def test_a_bucket_that_is_not_there_is_named(s3_url):
    """Nothing can be written there, and nothing is called damaged."""
    store = Artifacts("s3://no-such-bucket/prefix", "fraud")
    with pytest.raises(StoreError) as error:
        store.write_part(1, "000", {}, {"learner": b"x"})
    refused(error, "s3://no-such-bucket/prefix/fraud/00000001/000/learner.zst", "not exist")
    with pytest.raises(StoreError) as error:
        store.manifest(1)
    refused(error, "s3://no-such-bucket/prefix/fraud")


def test_a_store_that_was_killed_is_named(s3, s3_url):
    """Each operation says in one line which file could not be reached."""
    made = Made(s3_url)
    s3.kill()
    for work in (
        lambda: made.artifacts.manifest(7, made.sha256),
        lambda: made.artifacts.read_part(made.manifest, "000"),
        lambda: made.artifacts.write_part(8, "000", {}, PARTS),
        lambda: made.artifacts.problems(made.manifest),
        lambda: made.artifacts.remove(7),
    ):
        with pytest.raises(StoreError) as error:
            work()
        refused(error, s3_url)


def test_a_store_that_does_not_answer_is_given_up(s3, s3_url):
    """Nobody waits for ever, and what was meant can be done once it answers again."""
    made = Made(s3_url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(artifacts._S3["config_kwargs"], "read_timeout", 0.5)
        patch.setattr(artifacts, "_SEND_SECONDS", 0.5)
        impatient = Artifacts(s3_url, "fraud")
        s3.freeze()
        for work in (
            lambda: impatient.write_part(8, "000", {}, PARTS),
            lambda: impatient.manifest(7, made.sha256),
        ):
            with pytest.raises(StoreError) as error:
                work()
            refused(error, s3_url)
    s3.thaw()
    assert made.artifacts.write_part(8, "000", {}, PARTS)


@pytest.mark.parametrize("place", ["nosuch://x/y"])
def test_a_store_of_an_unknown_kind_is_refused(place):
    """At once, and by its name."""
    with pytest.raises(StoreError) as error:
        Artifacts(place, "fraud")
    refused(error, "nosuch")


def test_what_a_store_takes_and_is_not_installed_is_told(monkeypatch):
    """An ImportError is no traceback."""

    def missing(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(StoreError) as error:
        Artifacts("s3://bucket", "fraud")
    refused(error, "s3://bucket: Install s3fs to access S3")


def test_a_full_disk_is_told_and_leaves_no_draft(tmp_path):
    """A small one is made for it, where an ordinary user may; with room, the next part goes in."""
    script = ["unshare", "--map-root-user", "--mount", "sh", "-c", ON_A_SMALL_DISK, "sh"]
    try:
        done = subprocess.run(
            [*script, str(tmp_path), sys.executable, FULL],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            cwd=os.sep,
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if done.returncode == 99 or done.stderr.startswith("unshare:"):
        pytest.skip(f"no disk can be made here: {done.stderr.strip()}")
    lines = done.stdout.splitlines()
    path = f"{tmp_path}/artifacts/fraud/00000001/000/"
    assert lines[0].startswith(path), done.stderr
    assert lines[0].endswith("No space left on device")
    assert lines[1:] == ["[]", "['000/learner.zst']"]
