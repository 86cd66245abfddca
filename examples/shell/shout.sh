#!/usr/bin/env bash
# The work of one job, which is in NATS_REQUEST_BODY as getJob shows it.
set -euo pipefail
text=$(sed -n 's/.*"text":[[:space:]]*"\([^"]*\)".*/\1/p' <<<"$NATS_REQUEST_BODY")
printf '"%s!"' "${text^^}"
