"""A handler in Python: does jobs of the type "word-count", with nothing but the official NATS client.

    pip install nats-py && python handler.py

It introduces itself as a NATS micro-service, so nobody has to configure the type. Protocol: docs/protocol.md.
"""

import asyncio
import json
import os
import signal

import nats
from nats.micro import add_service
from nats.micro.request import Request

QUEUE = os.environ.get("QUEUE_PREFIX", "queue")
TYPE = "word-count"
SCHEMA = {
    "type": "object",
    "required": ["texts"],
    "properties": {"texts": {"type": "array", "items": {"type": "string"}}, "pauseMs": {"type": "integer"}},
}


class Permanent(Exception):
    """No further attempt can cure it."""


class TryAgain(Exception):
    def __init__(self, message: str, after: str) -> None:
        super().__init__(message)
        self.after = after


async def count_words(job: dict, say) -> dict:
    """The work. `say` tells progress, and keeps a checkpoint for the next run should this one be cut off."""
    kept = job["checkpoint"] or {"done": 0, "words": 0}
    texts = job["payload"]["texts"]
    for place in range(kept["done"], len(texts)):
        if texts[place] == "":
            raise Permanent(f"text {place} is empty")
        if texts[place] == "busy" and job["attempts"] == 1:
            raise TryAgain("the dictionary is being updated", after="0.2s")
        await asyncio.sleep(job["payload"].get("pauseMs", 0) / 1000)
        kept = {"done": place + 1, "words": kept["words"] + len(texts[place].split())}
        await say(percent=100 * kept["done"] / len(texts), message=f"{kept['done']} of {len(texts)}", checkpoint=kept)
    return {"words": kept["words"], "attempt": job["attempts"]}


async def main() -> None:
    nc = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
    running: dict[str, asyncio.Task] = {}

    async def work(request: Request) -> None:
        headers = request.headers
        job_id, run = headers["Job-Id"], int(headers["Job-Run"])

        async def say(**news) -> None:
            await nc.publish(f"{QUEUE}.progress.{TYPE}.{job_id}", json.dumps({"run": run, **news}).encode())

        try:
            # When this is over, nobody wants the result any more.
            left = int(headers["Job-Timeout-Ms"]) / 1000
            result = await asyncio.wait_for(count_words(json.loads(request.data), say), left)
            await request.respond(json.dumps(result).encode())
        except Permanent as fault:
            await request.respond_error("422", str(fault), headers={"Job-Retry": "false"})
        except TryAgain as fault:
            await request.respond_error("503", str(fault), headers={"Job-Retry-After": fault.after})
        except (asyncio.CancelledError, asyncio.TimeoutError):
            await request.respond_error("499", "stopped")
        except Exception as fault:  # whatever else: worth another attempt
            await request.respond_error("500", repr(fault))

    async def take(request: Request) -> None:
        # A task of its own, so that several jobs run at a time.
        task = running[request.headers["Job-Id"]] = asyncio.create_task(work(request))
        task.add_done_callback(lambda _: running.pop(request.headers["Job-Id"], None))

    async def cancel(message) -> None:
        task = running.get(message.subject.rsplit(".", 1)[1])
        if task:
            task.cancel()

    await nc.subscribe(f"{QUEUE}.control.cancel.{TYPE}.*", cb=cancel)
    service = await add_service(nc, name=TYPE, version="1.0.0", description="Counts words.")
    await service.add_endpoint(
        name=TYPE,
        subject=f"{QUEUE}.handlers.{TYPE}",
        queue_group="workers",
        handler=take,
        metadata={
            "queue.type": TYPE,
            "queue.description": "Counts words.",
            "queue.timeout": "1m",
            "queue.payloadSchema": json.dumps(SCHEMA),
        },
    )
    print(f"ready for {TYPE}", flush=True)

    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    await stop.wait()
    # No new jobs; those that run may end.
    await service.stop()
    await asyncio.gather(*running.values(), return_exceptions=True)
    await nc.drain()


asyncio.run(main())
