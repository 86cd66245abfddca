//! A worker in Rust: does jobs of the types "resize" and "greet" inside this program, next to the service.
//!
//!     cargo run --example worker
//!
//! Reads NATS_URL, DATABASE_URL and QUEUE_PREFIX. See docs/rust.md.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use queue_service::{
    Worker,
    config::Config,
    handlers::{Ended, Faults, Handler, Next, RunContext, layer},
    job::Failure,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A type with rules and a state of its own.
struct Resize {
    steps: u32,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Picture {
    width: u32,
    #[serde(default)]
    pause_ms: u64,
}

#[derive(Serialize)]
struct Sizes {
    widths: Vec<u32>,
}

impl Handler for Resize {
    const TYPE: &'static str = "resize";
    const ABOUT: &'static str = "Makes smaller pictures.";
    type Payload = Picture;
    type Output = Sizes;

    fn check(&self, payload: &Picture, faults: &mut Faults) {
        if payload.width < 16 {
            faults.add("/width", "must be at least 16");
        }
    }

    async fn run(&self, ctx: &RunContext, picture: Picture) -> Result<Sizes, Failure> {
        // What an earlier attempt has done is not done again.
        let mut widths: Vec<u32> = ctx.last_checkpoint().unwrap_or_default();
        while widths.len() < self.steps as usize {
            tokio::select! {
                _ = tokio::time::sleep(Duration::from_millis(picture.pause_ms)) => {}
                _ = ctx.cancelled() => return Err(Failure::retry("stopped half-way")),
            }
            widths.push(picture.width >> (widths.len() + 1));
            ctx.checkpoint(&widths);
            ctx.progress(100.0 * widths.len() as f64 / f64::from(self.steps), format!("{} sizes", widths.len()));
        }
        Ok(Sizes { widths })
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Greeting {
    name: String,
}

/// What the functions share.
#[derive(Default)]
struct Counters {
    greeted: AtomicU64,
}

async fn greet(ctx: RunContext, counters: Arc<Counters>, greeting: Greeting) -> Result<String, Failure> {
    match greeting.name.as_str() {
        // No attempt can cure it.
        "" => Err(Failure::permanent("nobody has no name")),
        "busy" if ctx.attempt == 1 => Err(Failure::retry("come again").after(Some(Duration::from_millis(200)))),
        name => {
            let n = counters.greeted.fetch_add(1, Ordering::Relaxed) + 1;
            Ok(format!("Hello, {name}, you are number {n}"))
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = Config::default();
    let variable = |name: &str, value: &mut String| {
        if let Ok(set) = std::env::var(name) {
            *value = set;
        }
    };
    variable("NATS_URL", &mut config.nats.url);
    variable("QUEUE_PREFIX", &mut config.nats.prefix);
    variable("DATABASE_URL", &mut config.database.url);

    let timing = layer(|ctx: &RunContext, next: Next<'_>| {
        let (id, job_type) = (ctx.job_id, ctx.job_type.clone());
        Box::pin(async move {
            let begun = Instant::now();
            let ended = next.run().await;
            println!("{job_type} {id} took {:?}, done: {}", begun.elapsed(), matches!(ended, Ended::Done(_)));
            ended
        })
    });
    let worker = Worker::builder()
        .config(config)
        .state(Arc::new(Counters::default()))
        .handler(Resize { steps: 3 })
        .function("greet", "Says hello.", greet)
        .layer(timing)
        .start()
        .await?;
    println!("ready for resize and greet");
    // SIGTERM and Ctrl-C: running jobs may end, the others are handed back.
    Ok(worker.run_until_told().await?)
}
