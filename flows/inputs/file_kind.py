"""Files as a kind of input, set by `input.path`."""

import fnmatch
from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

from midstream.connectors.decode.decoder import Decoding
from midstream.connectors.input import Input, InputError
from midstream.flows.config.settings import Input as InputSection
from midstream.flows.config.settings import Settings
from midstream.flows.config.tables import ConfigReader
from midstream.flows.inputs.kind import InputKind, Source
from midstream.flows.process import closed_descriptors

__all__ = ["FileKind", "FileSource"]


class FileSource(Source):
    """The files of a config."""

    def __init__(self, settings: Settings, *, until_eof: bool) -> None:
        self._settings = settings
        self._until_eof = until_eof
        self.descriptors = 0 if settings.one_shard else 1

    def partitions(self) -> list[str]:
        """Return the names of the existing files, in natural order."""
        return self._open(None, None, until_eof=True).names

    def open(self, part: str | None, decoding: Decoding, *, added: bool = False) -> Input:
        """Return the input of one shard: one file, or all of them."""
        del added
        return self._open(part, decoding, until_eof=self._until_eof)

    def _open(self, part: str | None, decoding: Decoding | None, *, until_eof: bool) -> Input:
        from midstream.connectors.files.input import FileInput

        source = self._settings.input
        assert not isinstance(source.start, float), "a file has no index by time"
        return FileInput(
            source.path or "",
            self._settings.root,
            part=part,
            format_=source.format,
            order=source.order,
            start=source.start,
            until_eof=until_eof,
            max_record_bytes=source.max_record_bytes,
            decoding=decoding,
        )

    def is_new(self, partition: str, known: Collection[str]) -> bool:
        """Whether a file is none of the known ones, nor a rotated one of them."""
        from midstream.connectors.files.rotation import is_rotated

        return partition not in known and not any(is_rotated(partition, name) for name in known)

    def look(self, known: Collection[str]) -> list[str]:
        """Return the files that would be shards of their own."""
        if self._settings.one_shard or self._until_eof:
            return []
        from midstream.connectors.files.discovery import discover

        try:
            found = discover(self._settings.input.path or "", self._settings.root)
        except InputError:
            return []  # all were moved; more may come
        return [name for name, _, _ in found if self.is_new(name, known)]


class FileKind(InputKind):
    """Files, a folder, a pattern, or standard input."""

    name: ClassVar[str] = "files"
    partition: ClassVar[str] = "file"
    range_form: ClassVar[str] = "FILE:FROM-TO"

    def recognises(self, source: InputSection) -> bool:
        """Whether `path` is set."""
        return source.path is not None

    def check(self, settings: Settings, reader: ConfigReader) -> None:
        """Raise ConfigError for settings that files do not allow."""
        self.check_options(settings, reader)
        source = settings.input
        if source.path is None:
            raise reader.error("input.path", "missing; needed: a file, folder or pattern")
        if self.is_read_once(settings):
            _check_standard_input(settings, reader)
        if isinstance(source.start, float):
            words = "'earliest' | 'latest': a file has no index by time"
            raise reader.refusal("input.start", source.start, words, ["earliest", "latest"])
        if _reads_outputs(settings):
            raise reader.error(
                "input.path", "takes in what is written to output.path; choose another"
            )

    def identity(self, settings: Settings) -> str:
        """Return the normalised path, relative to the config's folder if inside it."""
        from midstream.connectors.files.input import normal_path

        return normal_path(settings.input.path or "", settings.root)

    def is_read_once(self, settings: Settings) -> bool:
        """Whether it is standard input."""
        return settings.input.path == "-"

    def preflight(self, settings: Settings, *, until_eof: bool) -> None:
        """Raise InputError if the file does not exist, or standard input is closed."""
        if self.is_read_once(settings):
            if 0 in closed_descriptors():
                raise InputError("standard input is closed; nothing can be read from it")
            return
        from midstream.connectors.files.discovery import NoFilesError, discover

        try:
            discover(settings.input.path or "", settings.root)
        except NoFilesError:
            if until_eof or not settings.one_shard:  # shards belong to the files at the start
                raise

    def connect(self, settings: Settings, *, until_eof: bool) -> FileSource:
        """Return the source of the files."""
        return FileSource(settings, until_eof=until_eof)


def _check_standard_input(settings: Settings, reader: ConfigReader) -> None:
    source = settings.input
    if settings.model.on_error == "reject":
        raise reader.error(
            "model.on_error",
            "found 'reject' with standard input, which cannot be read again to leave an event out; "
            "allowed: 'stop'",
        )
    if source.ahead:
        raise reader.error(
            "input.ahead",
            "found true with standard input, of which a stop would lose what was read ahead; "
            "allowed: false",
        )
    if source.format in ("arrow", "parquet"):
        words = "'auto' | 'jsonl' | 'csv' from standard input; give others as files"
        raise reader.refusal("input.format", source.format, words, ["auto", "jsonl", "csv"])


def _reads_outputs(settings: Settings) -> bool:
    """Whether the input includes an output, so that the stream would feed itself for ever."""
    folder, pattern = settings.output_path, settings.input_path
    if pattern == "-":
        return False
    outputs = [folder / f"{name}.jsonl" for name in settings.outputs]
    return Path(pattern) == folder or any(
        file.match(pattern) or ("**" in pattern and fnmatch.fnmatch(str(file), pattern))
        for file in outputs
    )
