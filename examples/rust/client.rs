//! A client in Rust: hands in a job, follows it and prints its result.
//!
//!     cargo run --example client greet '{"name": "Ada"}'
//!
//! Reads NATS_URL and QUEUE_PREFIX.

use std::{process::ExitCode, time::Duration};

use queue_service::{
    Client, Enqueue,
    client::{CallError, NoResult},
    config,
};
use serde_json::{Value, json};

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(job_type), Some(payload)) = (arguments.next(), arguments.next()) else {
        return Err("usage: client TYPE PAYLOAD".into());
    };
    let payload: Value = serde_json::from_str(&payload)?;
    let mut nats = config::Nats::default();
    nats.url = std::env::var("NATS_URL").unwrap_or(nats.url);
    nats.prefix = std::env::var("QUEUE_PREFIX").unwrap_or(nats.prefix);
    let client = Client::open(&nats, None).await?;

    // With a key the request may be repeated when no answer comes: it stays one job.
    let job = Enqueue::new(job_type, &payload)?.key(uuid::Uuid::new_v4().to_string());
    let id = loop {
        match client.enqueue(&job).await {
            Ok(reply) => break reply.job_id,
            Err(e) if e.is_passing() => tokio::time::sleep(Duration::from_secs(1)).await,
            Err(CallError::Refused(refusal)) => {
                eprintln!("{refusal}");
                return Ok(ExitCode::from(2));
            }
            Err(e) => return Err(e.into()),
        }
    };
    let mut events = client.follow(Some(id)).await?;
    let show = async {
        while let Some(event) = events.next().await {
            eprintln!("{} {:?} {}", event.state, event.percent, event.message.unwrap_or_default());
        }
        std::future::pending().await
    };
    let job = tokio::select! {
        job = client.wait(id, Duration::from_secs(60)) => job?.ok_or("the job is not over after a minute")?,
        () = show => unreachable!("it shows until the job is over"),
    };
    let (code, shown) = match job.output::<Value>() {
        Ok(result) => (ExitCode::SUCCESS, result),
        Err(NoResult::Ended { error, .. }) => (ExitCode::from(1), json!({"error": error})),
        Err(e) => return Err(e.into()),
    };
    println!("{shown}");
    Ok(code)
}
