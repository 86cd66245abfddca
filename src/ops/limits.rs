//! The limits of the contract in one list, taken from where they hold: docs/protocol.md has the same ones, and a test compares.

use std::time::Duration;

use super::{cancel, enqueue, error, list, wait, work};
use crate::{config, job, types::definition};

/// What is limited, and to how much, as the page writes it.
pub fn all() -> Vec<(&'static str, String)> {
    let limits = config::Limits::default();
    let bytes = |n: usize| format!("{} KiB", n / 1024);
    let times =
        |range: &std::ops::RangeInclusive<Duration>| format!("{} to {}", text(*range.start()), text(*range.end()));
    let ms = |range: &std::ops::RangeInclusive<i64>| format!("{} to {}", range.start(), range.end());
    vec![
        ("payload of a job", bytes(limits.payload.as_u64() as usize)),
        ("result of a job", bytes(limits.result.as_u64() as usize)),
        ("checkpoint of a run", bytes(job::update::CHECKPOINT_MAX)),
        ("message of progress or of a failure, bytes", job::settle::MESSAGE_MAX.to_string()),
        ("nesting of JSON", job::json::MAX_DEPTH.to_string()),
        ("jobs in one `enqueueMany`", enqueue::MAX_BULK.to_string()),
        ("`idempotencyKey`, characters", enqueue::MAX_KEY_CHARS.to_string()),
        ("`tags`", enqueue::MAX_TAGS.to_string()),
        ("a tag, characters", enqueue::MAX_TAG_CHARS.to_string()),
        ("`priority`", format!("{} to {}", job::Priority::MIN, job::Priority::MAX)),
        ("`timeout`", times(&config::TIMEOUT_RANGE)),
        ("`reason` of `cancelJob`, characters", cancel::MAX_REASON_CHARS.to_string()),
        ("`timeoutMs` of `waitJob`", format!("0 to {}", wait::MAX_WAIT)),
        ("`limit` of `listJobs`", list::MAX_LIMIT.to_string()),
        ("`offset` of `listJobs`", list::MAX_OFFSET.to_string()),
        ("a page of `listJobs`", bytes(list::PAGE_BYTES)),
        ("`types` of `work.fetch`", work::MAX_TYPES.to_string()),
        ("`max` of `work.fetch`", work::MAX_JOBS.to_string()),
        ("`waitMs` of `work.fetch`", format!("0 to {}", work::MAX_WAIT_MS)),
        ("`leaseMs` of `work.fetch`", ms(&work::LEASE_MS)),
        ("jobs of one answer to `work.fetch`", bytes(work::BUDGET)),
        ("`runs` of `work.heartbeat`", work::MAX_RUNS.to_string()),
        ("`description` of a type, characters", definition::ABOUT_MAX.to_string()),
        ("a schema of a type", bytes(definition::SCHEMA_MAX)),
        ("`heartbeat` of a type", times(&definition::HEARTBEAT_RANGE)),
        ("`delays` of a `backoff`", definition::DELAYS_MAX.to_string()),
        ("`retryAfter`, and a delay of a `backoff`", text(definition::DELAY_MAX)),
        ("faults that one refusal names", error::MAX_FAULTS.to_string()),
    ]
}

/// `100 ms`, `1 s`, `24 h`
fn text(span: Duration) -> String {
    match span.as_millis() {
        ms if ms % 3_600_000 == 0 => format!("{} h", ms / 3_600_000),
        ms if ms % 1000 == 0 => format!("{} s", ms / 1000),
        ms => format!("{ms} ms"),
    }
}
