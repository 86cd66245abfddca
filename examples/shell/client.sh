#!/usr/bin/env bash
# A client with nothing but the NATS command line: hands in a job, waits for it and prints it.
#     ./client.sh shout '{"text": "hello"}'
set -euo pipefail
queue=${QUEUE_PREFIX:-queue}
nats="nats --server ${NATS_URL:-nats://127.0.0.1:4222}"

body=$(printf '{"type": "%s", "payload": %s}' "$1" "$2")
answer=$($nats request --raw --timeout 5s "$queue.enqueue" "$body")
id=$(sed -n 's/.*"jobId":"\([^"]*\)".*/\1/p' <<<"$answer")
[ -n "$id" ] || { echo "refused: $answer" >&2; exit 2; }
$nats request --raw --timeout 65s "$queue.waitJob" "{\"jobId\": \"$id\", \"timeoutMs\": 60000}"
