"""Writes a JSON Lines file, so many times over, as an Arrow IPC file and as Parquet.

Usage: to_columns.py FILE FOLDER TIMES
"""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet

ROWS = 65_536  # in a record batch, and in a row group


def main() -> None:
    source, folder, times = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    table = pyarrow.json.read_json(source).combine_chunks()
    with pa.ipc.new_file(folder / "events.arrow", table.schema) as out:
        for _ in range(times):
            out.write_table(table, max_chunksize=ROWS)
    with pyarrow.parquet.ParquetWriter(folder / "events.parquet", table.schema) as parquet:
        for _ in range(times):
            parquet.write_table(table, row_group_size=ROWS)


if __name__ == "__main__":
    main()
