"""Where CSV records end, by definition: the state machine of Python's csv module, in the open."""


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
