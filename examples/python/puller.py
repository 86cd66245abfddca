"""A pull worker in Python, for machines that can't be called: fetches jobs of the type "square" and does them.

    queue-service types register square --handler pull
    python puller.py
"""

import asyncio
import json
import os
import signal
import socket

import nats

QUEUE = os.environ.get("QUEUE_PREFIX", "queue")
TYPE = "square"
WORKER = f"{socket.gethostname()}-{os.getpid()}"
LEASE_MS = 10_000


async def square(payload: dict) -> int:
    """The work."""
    await asyncio.sleep(payload.get("pauseMs", 0) / 1000)
    return payload["n"] ** 2


async def main() -> None:
    nc = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)

    async def ask(verb: str, body: dict, timeout: float = 5) -> dict:
        reply = await nc.request(f"{QUEUE}.work.{verb}", json.dumps(body).encode(), timeout=timeout)
        return json.loads(reply.data)

    async def keep(run: dict, task: asyncio.Task) -> None:
        """Signs of life, every third of the lease; stops the work when it is not wanted any more."""
        while True:
            await asyncio.sleep(LEASE_MS / 3000)
            told = await ask("heartbeat", {"workerId": WORKER, "runs": [run]})
            if told["runs"][0]["state"] != "held":
                task.cancel()

    async def do(job: dict) -> None:
        run = {"jobId": job["id"], "run": job["run"]}
        work = asyncio.create_task(square(job["payload"]))
        alive = asyncio.create_task(keep(run, work))
        try:
            # An answer that gets lost is asked for again: the same outcome of the same run is answered the same way.
            await ask("complete", {**run, "result": await work})
        except asyncio.CancelledError:
            await ask("release", run)
        except Exception as fault:
            await ask("fail", {**run, "message": repr(fault)})
        finally:
            alive.cancel()

    print(f"fetching {TYPE} as {WORKER}", flush=True)
    while not stop.is_set():
        wish = {"types": [TYPE], "max": 4, "waitMs": 2000, "workerId": WORKER, "leaseMs": LEASE_MS}
        fetched = await ask("fetch", wish, timeout=10)
        await asyncio.gather(*(do(job) for job in fetched.get("jobs", [])))
    await nc.drain()


asyncio.run(main())
