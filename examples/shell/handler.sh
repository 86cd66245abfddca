#!/usr/bin/env bash
# A handler with nothing but the NATS command line: does jobs of the type "shout", a process for each.
#     queue-service types register shout --handler nats
#     ./handler.sh
# What the command prints is the result, so it has to be JSON. Failures with their headers need a client library.
set -euo pipefail
queue=${QUEUE_PREFIX:-queue}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec nats --server "${NATS_URL:-nats://127.0.0.1:4222}" reply --queue workers \
    "$queue.handlers.shout" --command "bash $here/shout.sh"
