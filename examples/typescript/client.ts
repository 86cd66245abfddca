/**
 * A client in TypeScript: hands in a job, follows it and prints its result. Nothing but the official NATS client.
 *
 *     npm ci && npm run build
 *     node dist/client.js word-count '{"texts": ["to be or", "not to be"]}'
 */
import { randomUUID } from "node:crypto";
import { connect } from "@nats-io/transport-node";

const queue = process.env.QUEUE_PREFIX ?? "queue";
const [type, payload] = process.argv.slice(2);
const nc = await connect({ servers: process.env.NATS_URL ?? "nats://127.0.0.1:4222" });

class Refused extends Error {}

async function ask(verb: string, body: object, timeout = 5_000) {
  const reply = await nc.request(`${queue}.${verb}`, JSON.stringify(body), { timeout });
  const answer: any = reply.json();
  if (reply.headers?.has("Nats-Service-Error-Code")) throw new Refused(`${answer.code}: ${answer.detail}`);
  return answer;
}

try {
  // With a key the request may be repeated when no answer comes: it stays one job.
  const wanted = { type, payload: JSON.parse(payload ?? "null"), idempotencyKey: randomUUID() };
  const { jobId } = await ask("enqueue", wanted);
  console.error(`job ${jobId}`);
  nc.subscribe(`${queue}.events.${type}.*.${jobId}`, {
    callback: (_, message) => {
      const event = message.json<{ state: string; percent?: number; message?: string }>();
      console.error(event.state, event.percent ?? "", event.message ?? "");
    },
  });
  const job = await ask("waitJob", { jobId, timeoutMs: 60_000 }, 65_000);
  const done = job.status === "completed";
  console.log(JSON.stringify(done ? job.result : { error: job.error }));
  process.exitCode = done ? 0 : 1;
} catch (fault) {
  if (!(fault instanceof Refused)) throw fault;
  console.error(fault.message);
  process.exitCode = 2;
} finally {
  await nc.drain();
}
