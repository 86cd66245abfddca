/**
 * A handler in TypeScript: does jobs of the type "word-count", with nothing but the official NATS client.
 *
 *     npm ci && npm run build
 *     node dist/handler.js
 *
 * It registers the type when it starts. Protocol: docs/protocol.md.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { connect, headers, type Msg } from "@nats-io/transport-node";

const queue = process.env.QUEUE_PREFIX ?? "queue";
const TYPE = "word-count";
const definition = {
  type: TYPE,
  handler: "nats",
  description: "Counts words.",
  timeout: "1m",
  payloadSchema: {
    type: "object",
    required: ["texts"],
    properties: { texts: { type: "array", items: { type: "string" } }, pauseMs: { type: "integer" } },
  },
};

interface Job {
  payload: { texts: string[]; pauseMs?: number };
  attempts: number;
  checkpoint: { done: number; words: number } | null;
}

/** No further attempt can cure it. */
class Permanent extends Error {}

class TryAgain extends Error {
  constructor(message: string, readonly after: string) {
    super(message);
  }
}

/** The work. `say` tells progress, and keeps a checkpoint for the next run should this one be cut off. */
async function countWords(job: Job, say: (news: object) => void, stop: AbortSignal) {
  const { texts, pauseMs = 0 } = job.payload;
  const kept = job.checkpoint ?? { done: 0, words: 0 };
  for (const [place, text] of texts.entries()) {
    if (place < kept.done) continue;
    if (text === "") throw new Permanent(`text ${place} is empty`);
    if (text === "busy" && job.attempts === 1) throw new TryAgain("the dictionary is being updated", "0.2s");
    await sleep(pauseMs, undefined, { signal: stop });
    kept.done = place + 1;
    kept.words += text.split(/\s+/).filter(Boolean).length;
    say({ percent: (100 * kept.done) / texts.length, message: `${kept.done} of ${texts.length}`, checkpoint: kept });
  }
  return { words: kept.words, attempt: job.attempts };
}

const nc = await connect({ servers: process.env.NATS_URL ?? "nats://127.0.0.1:4222" });
const running = new Map<string, { stop: AbortController; ended: Promise<void> }>();

function failure(fault: unknown) {
  const told = headers();
  const set = (code: number, text: string) => {
    told.set("Nats-Service-Error-Code", String(code));
    told.set("Nats-Service-Error", text.replace(/\s+/g, " "));
  };
  if (fault instanceof Permanent) {
    set(422, fault.message);
    told.set("Job-Retry", "false");
  } else if (fault instanceof TryAgain) {
    set(503, fault.message);
    told.set("Job-Retry-After", fault.after);
  } else if (fault instanceof Error && fault.name === "AbortError") {
    set(499, "stopped");
  } else {
    set(500, String(fault));
  }
  return told;
}

async function work(message: Msg, stop: AbortController) {
  const header = (name: string) => message.headers?.get(name) ?? "";
  const [id, run] = [header("Job-Id"), Number(header("Job-Run"))];
  const say = (news: object) => nc.publish(`${queue}.progress.${TYPE}.${id}`, JSON.stringify({ run, ...news }));
  // When this is over, nobody wants the result any more.
  const alarm = setTimeout(() => stop.abort(), Number(header("Job-Timeout-Ms")));
  try {
    const result = await countWords(message.json<Job>(), say, stop.signal);
    message.respond(JSON.stringify(result));
  } catch (fault) {
    message.respond("", { headers: failure(fault) });
  } finally {
    clearTimeout(alarm);
  }
}

nc.subscribe(`${queue}.control.cancel.${TYPE}.*`, {
  callback: (_, message) => running.get(message.subject.split(".").at(-1)!)?.stop.abort(),
});
const jobs = nc.subscribe(`${queue}.handlers.${TYPE}`, {
  queue: "workers",
  callback: (_, message) => {
    const id = message.headers?.get("Job-Id") ?? "";
    const stop = new AbortController();
    const entry = { stop, ended: work(message, stop) };
    running.set(id, entry);
    void entry.ended.finally(() => running.get(id) === entry && running.delete(id));
  },
});

const registered = await nc.request(`${queue}.registerType`, JSON.stringify(definition)).catch(() => undefined);
if (!registered || registered.headers?.has("Nats-Service-Error-Code")) {
  console.error(`not registered: ${registered?.string() ?? "nobody answers"}`);
}
console.log(`ready for ${TYPE}`);

async function end() {
  // No new jobs; those that run may end.
  await jobs.drain();
  await Promise.allSettled([...running.values()].map(({ ended }) => ended));
  await nc.drain();
}
process.once("SIGINT", end).once("SIGTERM", end);
