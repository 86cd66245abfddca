"""A client in Python: hands in a job, follows it and prints its result. Nothing but the official NATS client.

    python client.py word-count '{"texts": ["to be or", "not to be"]}'
"""

import asyncio
import json
import os
import sys
import uuid

import nats

QUEUE = os.environ.get("QUEUE_PREFIX", "queue")


class Refused(Exception):
    pass


async def ask(nc, verb: str, body: dict, timeout: float = 5) -> dict:
    reply = await nc.request(f"{QUEUE}.{verb}", json.dumps(body).encode(), timeout=timeout)
    answer = json.loads(reply.data)
    if reply.headers and "Nats-Service-Error-Code" in reply.headers:
        raise Refused(f"{answer['code']}: {answer['detail']}")
    return answer


async def main() -> int:
    job_type, payload = sys.argv[1], json.loads(sys.argv[2])
    nc = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
    # With a key the request may be repeated when no answer comes: it stays one job.
    wanted = {"type": job_type, "payload": payload, "idempotencyKey": str(uuid.uuid4())}
    try:
        job_id = (await ask(nc, "enqueue", wanted))["jobId"]
        print(f"job {job_id}", file=sys.stderr)

        async def show(message) -> None:
            event = json.loads(message.data)
            print(event["state"], event.get("percent", ""), event.get("message") or "", file=sys.stderr)

        await nc.subscribe(f"{QUEUE}.events.{job_type}.*.{job_id}", cb=show)
        job = await ask(nc, "waitJob", {"jobId": job_id, "timeoutMs": 60000}, timeout=65)
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        return 2
    finally:
        await nc.drain()
    print(json.dumps(job["result"] if job["status"] == "completed" else {"error": job["error"]}))
    return 0 if job["status"] == "completed" else 1


sys.exit(asyncio.run(main()))
