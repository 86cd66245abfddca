"""Uses the service as a program in Python does, with the official client and nothing of ours.

Called by the tests as: python_client.py NATS_URL PREFIX WEBHOOK_URL. Ends with 0 when everything was as the contract says.
"""

import asyncio
import json
import sys

import nats
from nats.errors import NoRespondersError


async def main(url: str, prefix: str, webhook: str) -> None:
    nc = await nats.connect(url)

    async def ask(verb: str, body: object) -> tuple[dict, dict]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        message = await nc.request(f"{prefix}.{verb}", data, timeout=20)
        return json.loads(message.data), dict(message.headers or {})

    async def call(verb: str, body: object) -> dict:
        reply, headers = await ask(verb, body)
        assert "Nats-Service-Error-Code" not in headers, (verb, reply)
        return reply

    events: list[tuple[str, dict]] = []
    completed = asyncio.Event()

    async def on_event(message) -> None:
        event = json.loads(message.data)
        events.append((message.subject, event))
        if event["state"] == "completed":
            completed.set()

    subscription = await nc.subscribe(f"{prefix}.events.webhook-delivery.>", cb=on_event)
    await nc.flush()

    # One job, from the request to its result, and the events on the way.
    job = {"type": "webhook-delivery", "payload": {"url": webhook, "body": {"from": "python"}}, "tags": ["python"]}
    enqueued = await call("enqueue", {**job, "idempotencyKey": "one"})
    job_id = enqueued["jobId"]
    assert enqueued == {"jobId": job_id, "status": "pending", "duplicate": False}, enqueued
    done = await call("waitJob", {"jobId": job_id, "timeoutMs": 20000})
    assert (done["status"], done["attempts"], done["result"]["status"]) == ("completed", 1, 200), done
    await asyncio.wait_for(completed.wait(), 20)
    await subscription.unsubscribe()
    states = [event["state"] for _, event in events if event["jobId"] == job_id]
    assert states == ["enqueued", "started", "completed"], states
    assert all(subject == f"{prefix}.events.webhook-delivery.{event['state']}.{job_id}" for subject, event in events), events
    assert all("payload" not in event and "result" not in event for _, event in events), events

    # The same key again names the same job; the bare id is a request too.
    again = await call("enqueue", {**job, "idempotencyKey": "one"})
    assert (again["jobId"], again["duplicate"]) == (job_id, True), again
    assert (await call("getJob", job_id.encode()))["id"] == job_id

    # Many at once: a bad one harms nobody.
    bulk = await call("enqueueMany", {"jobs": [job, {"type": "no-such-type", "payload": {}}, job]})
    first, refused, last = bulk["results"]
    assert refused["error"]["code"] == "unknown_type", refused
    for result in (first, last):
        assert (await call("waitJob", {"jobId": result["jobId"]}))["status"] == "completed"

    # Page by page, newest first.
    ids: list[str] = []
    cursor = None
    while True:
        page = await call("listJobs", {"tag": "python", "limit": 2, **({"cursor": cursor} if cursor else {})})
        ids += [item["id"] for item in page["jobs"]]
        cursor = page["nextCursor"]
        if cursor is None:
            break
    assert sorted(ids) == sorted([job_id, first["jobId"], last["jobId"]]), ids
    assert ids == sorted(ids, reverse=True), ids

    # What is wrong is told in the headers for programs, and in the body for people.
    for verb, body, status, code in [
        ("enqueue", b"{", "400", "invalid_json"),
        ("enqueue", {"type": "webhook-delivery", "payload": {}}, "400", "invalid_payload"),
        ("getJob", {"jobId": "01890000-0000-7000-8000-000000000000"}, "404", "job_not_found"),
        ("retryJob", {"jobId": job_id}, "409", "not_retryable"),
        ("cancelJob", {"jobId": job_id}, "409", "already_finished"),
        ("enqueue", {**job, "priority": 3, "idempotencyKey": "one"}, "409", "idempotency_conflict"),
    ]:
        problem, headers = await ask(verb, body)
        assert headers.get("Nats-Service-Error-Code") == status, (verb, headers)
        assert headers.get("Nats-Service-Error", "").startswith(code), (verb, headers)
        assert (problem["code"], problem["status"]) == (code, int(status)), problem

    stats = await call("getStats", b"")
    assert (stats["total"], stats["completed"], stats["completionRate"]) == (3, 3, "100.00%"), stats
    assert "webhook-delivery" in json.dumps(await call("listTypes", b""))

    try:
        await nc.request(f"{prefix}.noSuchVerb", b"", timeout=5)
        raise AssertionError("nobody answers a verb that does not exist")
    except NoRespondersError:
        pass
    await nc.drain()


asyncio.run(main(*sys.argv[1:]))
