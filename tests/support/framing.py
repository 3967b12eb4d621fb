"""Where CSV records end, by definition: a machine that takes a byte at a time, in the open."""


def unclosed(record: bytes, delimiter: bytes = b",") -> bool:
    """Whether `record`, which begins a record, ends inside of quotes."""
    state = "start"
    for byte in record:
        character = bytes([byte])
        if state == "quoted":
            state = "closed" if character == b'"' else "quoted"
        elif character == b'"' and state in ("start", "closed"):
            state = "quoted"  # opened, or a quote that is doubled
        else:
            state = "start" if character in (delimiter, b"\n") else "plain"
    return state == "quoted"


def record_end(data: bytes, width: int, delimiter: bytes = b",") -> int:
    """Return where the sound record that `data` begins with ends, after its newline; 0: nowhere.

    It is a line; or it goes on while a field is quoted, and is sound, with `width` fields.
    """
    line = data.find(b"\n") + 1
    if line and not unclosed(data[: line - 1], delimiter):
        return line
    state, fields = "start", 1
    for i, byte in enumerate(data):
        character = bytes([byte])
        if state == "quoted":
            state = "closed" if character == b'"' else "quoted"
        elif character == b"\n":
            return i + 1 if fields == width else 0
        elif character == delimiter:
            state, fields = "start", fields + 1
        elif state == "closed":
            if character == b"\r" and data[i + 1 : i + 2] in (b"\n", b""):
                continue
            if character != b'"':
                return 0
            state = "quoted"
        elif state == "start":
            state = "quoted" if character == b'"' else "plain"
    return 0
