"""Predictions of a version, for the events of a file, apart from any run."""

from pathlib import Path
from typing import BinaryIO

import msgspec

from midstream.connectors.codec import encode_predictions
from midstream.flows.logs import log
from midstream.flows.operations import OperationError, opened
from midstream.flows.reading import Reader
from midstream.flows.settings import Settings, make_model

__all__ = ["predict_file"]


def predict_file(
    settings: Settings, file: str, version: int | None, shard: str | None, out: BinaryIO
) -> int:
    """Write a prediction for each event of a file; return how many lines could not be read.

    Parameters
    ----------
    file
        A path as `input.path` takes, relative to where we are; "-" is standard input.
    version
        None: the newest.
    shard
        Whose model; None: of the only one.

    Raises
    ------
    OperationError
        If there is no version, or it has several shards and none is named.
    UnknownVersionError, ArtifactError, RegistryError, StoreError, InputError
        If the version or the file cannot be read.
    """
    make_model(settings)  # its module has to be there, before what is saved of it is read
    with opened(settings) as registry:
        if version is None:
            rows = registry.versions()
            if not rows:
                raise OperationError(f"there is no version of {settings.name} yet")
            version = rows[-1].version
        try:
            trainer = registry.load(version, shard)
        except ValueError as error:
            raise OperationError(str(error)) from None
    path = file if file == "-" else str(Path(file).absolute())
    source = msgspec.structs.replace(settings.input, path=path, topic=None, start="earliest")
    reader = Reader(msgspec.structs.replace(settings, input=source), until_eof=True)
    rejected = 0
    try:
        for _, decoded in reader:
            for each in decoded.rejected:
                log.warning(
                    "rejected", origin=f"{each.origin[0]}:{each.origin[2]}", path=each.path,
                    reason=each.reason,
                )  # fmt: skip
            rejected += len(decoded.rejected)
            lines = encode_predictions(
                decoded.batch,
                trainer.predict(decoded.batch),
                task=settings.model.task,
                model=settings.name,
                version=version,
                role="champion",
            )
            out.write(lines)
            out.flush()
    finally:
        reader.input.close()
    return rejected
