//! `--demo`: a job of every kind, so that a newcomer sees all statuses within seconds.

use std::time::Duration;

use serde_json::json;

use super::sandbox::{Sandbox, demo::CANCEL_TAG};
use crate::{
    job::Status,
    ops::{EnqueueOptions, Ops, wire::CancelRequest},
    telemetry::say,
};

/// How long a job may take to start before it is cancelled all the same.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn run(ops: &Ops, sandbox: &Sandbox) {
    let mut to_cancel = None;
    let requests = sandbox.demo_requests();
    let n = requests.len();
    for request in requests {
        let body = request.to_string();
        let reply = match ops.enqueue(None, body.as_bytes(), EnqueueOptions::default()).await {
            Ok(reply) => reply,
            Err(e) => {
                tracing::error!("a request of the demo was refused: {}: {body}", e.detail);
                continue;
            }
        };
        let tags = request["tags"].as_array();
        if tags.is_some_and(|tags| tags.contains(&json!(CANCEL_TAG))) {
            to_cancel = Some(reply.job_id);
        }
    }
    say(format!("The demo has enqueued {n} jobs: `list`, `stats` and `watch` show them"));
    let Some(id) = to_cancel else { return };
    let running = async {
        loop {
            let job = ops.get_job(None, id.to_string().as_bytes()).await;
            if job.is_ok_and(|job| job.status != Status::Pending) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let _ = tokio::time::timeout(PATIENCE, running).await;
    let request = CancelRequest { reason: Some("the demo shows a cancellation".into()), ..CancelRequest::from(id) };
    // It may have ended by itself meanwhile, which is no harm.
    let _ = ops.cancel_job(None, request).await;
}
