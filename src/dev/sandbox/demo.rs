//! What `dev --demo` enqueues: one job of each type, and enough trouble that every status is seen within ten seconds.

use serde_json::{Value, json};

use super::{REFUSED_MAILBOX, Sandbox};

/// The job with this tag is meant to be cancelled while it runs.
pub const CANCEL_TAG: &str = "to-be-cancelled";

impl Sandbox {
    /// Requests for `enqueue`, in the order in which they make sense to a reader. All but one end, retry or wait by
    /// themselves; the one tagged [`CANCEL_TAG`] is for whoever enqueues them to cancel.
    pub fn demo_requests(&self) -> Vec<Value> {
        let hook = |tail: &str| self.url(&format!("/dev/webhooks/{tail}"));
        let mut requests = vec![
            json!({"type": "send-email", "payload": {
                "to": "newcomer@example.com",
                "subject": "Welcome to queue-service",
                "body": "This mail went over SMTP to the sandbox's mailbox. Nothing left your machine.",
                "html": "<p>This mail went over <b>SMTP</b> to the sandbox's mailbox. Nothing left your machine.</p>",
            }}),
            json!({"type": "generate-content", "payload": {"prompt": "Why do queues help when traffic comes in bursts?"}}),
            json!({"type": "crawl-website", "payload": {
                "url": self.site_url(), "maxPages": 8, "selectors": {"title": "h1", "lead": ".lead"},
            }}),
            json!({"type": "batch-import", "payload": {"namespace": "demo", "items": [
                {"id": "tea", "data": {"price": 3}},
                {"id": "coffee", "data": {"price": 4}},
                {"id": "water", "data": {"price": 0}},
            ]}}),
            json!({"type": "webhook-delivery", "payload": {
                "url": hook("orders"), "body": {"order": 1, "state": "paid"},
            }}),
        ];
        // Several of the same model at once: they share requests.
        for text in ["Tea is a leaf.", "Coffee is a bean.", "Tea leaves are steeped.", "The invoice is overdue."] {
            requests.push(json!({"type": "generate-embedding", "payload": {"text": text}}));
        }
        let troubled = [
            // Two refusals, each with "again in a second", then success: three attempts.
            json!({"type": "webhook-delivery", "payload": {
                "url": hook("flaky?fail=2&status=503&retryAfter=1"), "body": {"try": "again"},
            }}),
            // Waits for its next attempt by the type's own schedule.
            json!({"type": "webhook-delivery", "payload": {"url": hook("down?status=500"), "body": {}}}),
            // Permanent: failed at once, without a retry.
            json!({"type": "webhook-delivery", "payload": {"url": hook("gone?status=410"), "body": {}}}),
            json!({"type": "send-email", "payload": {
                "to": REFUSED_MAILBOX, "subject": "Hello?", "body": "Nobody will read this.",
            }}),
            json!({"type": "generate-content", "payload": {"prompt": "Anything", "model": "sandbox-refuse"}}),
            // Busy twice, then out of attempts.
            json!({"type": "generate-embedding", "maxAttempts": 2, "payload": {"text": "Tea", "model": "sandbox-busy"}}),
            // In work for a while.
            json!({"type": "webhook-delivery", "payload": {"url": hook("slow?wait=20s"), "body": {}}}),
            json!({"type": "webhook-delivery", "tags": [CANCEL_TAG], "payload": {
                "url": hook("slower?wait=25s"), "body": {},
            }}),
            // Not before tomorrow.
            json!({"type": "send-email", "delay": "24h", "payload": {
                "to": "newcomer@example.com", "subject": "One day later", "body": "Still there?",
            }}),
        ];
        requests.extend(troubled);
        for request in &mut requests {
            match request["tags"].as_array_mut() {
                Some(tags) => tags.push("demo".into()),
                None => request["tags"] = json!(["demo"]),
            }
        }
        requests
    }
}
