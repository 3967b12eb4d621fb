"""The senders of `gateway.py`: so many connections, each with one request after the other.

Prints one JSON object. A request that is not answered with 202 ends it.
"""

import argparse
import asyncio
import json
import time


async def send(port: int, token: str, requests: list[bytes], lates: list[float]) -> None:
    """Send the bodies over one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"POST /v1/feedback HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: application/json\r\nContent-Length: "
    ).encode()
    for body in requests:
        begun = time.perf_counter()
        writer.write(b"%s%d\r\n\r\n%s" % (head, len(body), body))
        answer = await reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 202"):
            raise SystemExit(answer.decode())
        length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        await reader.readexactly(length)
        lates.append(time.perf_counter() - begun)
    writer.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("token")
    parser.add_argument("prefix")
    parser.add_argument("--senders", type=int, default=200)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--items", type=int, default=1)
    options = parser.parse_args()
    each = options.requests // options.senders

    def body(sender: int, number: int) -> bytes:
        items = [
            {"id": f"{options.prefix}-{sender}-{number}-{n}", "y": True, "ts": 1.7e9}
            for n in range(options.items)
        ]
        return json.dumps(items if options.items > 1 else items[0]).encode()

    bodies = [[body(s, n) for n in range(each)] for s in range(options.senders)]
    lates: list[float] = []
    begun = time.perf_counter()
    await asyncio.gather(*(send(options.port, options.token, some, lates) for some in bodies))
    seconds = time.perf_counter() - begun
    lates.sort()
    print(
        json.dumps(
            {
                "events": len(lates),
                "rate": len(lates) / seconds,
                "p50": lates[len(lates) // 2],
                "p99": lates[len(lates) * 99 // 100],
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main())
