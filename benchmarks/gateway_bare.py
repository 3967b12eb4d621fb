"""The other side of `gateway.py`: a bare handler that writes each item to a topic.

It answers with 202 when the brokers have acknowledged (acks=all, idempotent producer). It checks
nothing, removes nothing, and keeps nothing for after a crash: what one writes first.
"""

import asyncio
import json
import sys
import threading

from aiohttp import web
from confluent_kafka import Producer


async def main() -> None:
    brokers, topic, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    producer = Producer(
        {"bootstrap.servers": brokers, "enable.idempotence": True, "linger.ms": 2,
         "compression.type": "lz4"}
    )  # fmt: skip
    loop = asyncio.get_running_loop()
    threading.Thread(target=lambda: [producer.poll(0.1) for _ in iter(int, 1)], daemon=True).start()

    async def handle(request: web.Request) -> web.Response:
        sent = json.loads(await request.read())
        items = sent if isinstance(sent, list) else [sent]
        done = loop.create_future()
        left = len(items)

        def told(error, _message) -> None:
            nonlocal left
            left -= 1
            if error is not None or not left:
                loop.call_soon_threadsafe(
                    lambda: done.done() or done.set_result(None if error is None else str(error))
                )

        for item in items:
            value = json.dumps({**item, "source": "bare"}).encode()
            producer.produce(topic, value, item["id"].encode(), on_delivery=told)
        error = await done
        body = json.dumps({"accepted": len(items)})
        return web.Response(
            status=503 if error else 202, text=body, content_type="application/json"
        )

    app = web.Application()
    app.router.add_post("/v1/feedback", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
