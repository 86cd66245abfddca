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
from nats.errors import NoRespondersError, TimeoutError

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
    in_hand: set[asyncio.Task] = set()
    fetching = asyncio.current_task()

    def stop() -> None:
        # No new jobs; what can't be finished now is given back.
        for task in [fetching, *in_hand]:
            task.cancel()

    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop)

    async def ask(verb: str, body: dict, timeout: float = 5) -> dict:
        reply = await nc.request(f"{QUEUE}.work.{verb}", json.dumps(body).encode(), timeout=timeout)
        return json.loads(reply.data)

    async def tell(verb: str, body: dict) -> None:
        """Says what became of a run. The same outcome of the same run may be told again until it is answered; the answer
        may also be lease_lost: then it is not wanted any more."""
        while True:
            try:
                await ask(verb, body)
                return
            except (TimeoutError, NoRespondersError):
                await asyncio.sleep(1)

    async def keep(run: dict, task: asyncio.Task) -> None:
        """Signs of life, every third of the lease; stops the work when it is not wanted any more."""
        while True:
            await asyncio.sleep(LEASE_MS / 3000)
            try:
                told = await ask("heartbeat", {"workerId": WORKER, "runs": [run]})
            except (TimeoutError, NoRespondersError):
                continue
            state = told["runs"][0]["state"]
            if state != "held":
                task.cancel(state)

    async def do(job: dict) -> None:
        run = {"jobId": job["id"], "run": job["run"]}
        work = asyncio.create_task(square(job["payload"]))
        alive = asyncio.create_task(keep(run, work))
        in_hand.add(work)
        try:
            await tell("complete", {**run, "result": await work})
        except asyncio.CancelledError as why:
            if "lost" not in why.args:
                await tell("release", run)
        except TypeError as fault:  # no further attempt can cure it
            await tell("fail", {**run, "message": repr(fault), "retry": False})
        except Exception as fault:
            await tell("fail", {**run, "message": repr(fault)})
        finally:
            in_hand.discard(work)
            alive.cancel()

    print(f"fetching {TYPE} as {WORKER}", flush=True)
    jobs: list[asyncio.Task] = []
    try:
        while True:
            wish = {"types": [TYPE], "max": 4, "waitMs": 2000, "workerId": WORKER, "leaseMs": LEASE_MS}
            try:
                fetched = await ask("fetch", wish, timeout=10)
            except (TimeoutError, NoRespondersError):
                await asyncio.sleep(1)
                continue
            jobs = [asyncio.create_task(do(job)) for job in fetched.get("jobs", [])]
            if jobs:
                await asyncio.wait(jobs)
    except asyncio.CancelledError:
        pass
    if jobs:
        await asyncio.wait(jobs)
    await nc.drain()


asyncio.run(main())
