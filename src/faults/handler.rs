//! A job type whose handler does what handlers must not do. Known only where `QUEUE_FAULT_HANDLER` is set.

use std::time::Duration;

use serde::Deserialize;

use crate::{
    handlers::{Handler, Registry, RunContext, registry},
    job::Failure,
};

struct Misbehave;

#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct Payload {
    /// What to do.
    r#do: Do,
}

#[derive(Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Do {
    /// What is expected of it.
    Work,
    /// Ends the whole process.
    Abort,
    /// Takes memory until there is none.
    EatMemory,
    /// Calls itself until the stack is full.
    Overflow,
    /// Keeps its thread for three seconds.
    BlockThread,
    /// Takes no notice of being told to stop.
    IgnoreEverything,
}

impl Handler for Misbehave {
    const TYPE: &'static str = "misbehave";
    const ABOUT: &'static str = "Does what handlers must not do.";
    type Payload = Payload;
    type Output = ();

    async fn run(&self, _: &RunContext, payload: Payload) -> Result<(), Failure> {
        match payload.r#do {
            Do::Work => {}
            Do::Abort => std::process::abort(),
            Do::EatMemory => {
                let mut eaten = Vec::new();
                loop {
                    eaten.push(vec![1_u8; 16 << 20]);
                    tokio::task::yield_now().await;
                }
            }
            Do::Overflow => {
                std::hint::black_box(deeper(0));
            }
            Do::BlockThread => std::thread::sleep(Duration::from_secs(3)),
            Do::IgnoreEverything => loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
            },
        }
        Ok(())
    }
}

#[expect(unconditional_recursion, reason = "that is what it is for")]
fn deeper(depth: u64) -> u64 {
    let room = std::hint::black_box([depth; 512]);
    deeper(depth + 1) + room[0]
}

/// With this type, where the environment asks for it.
///
/// # Errors
/// None, in a program whose types have different names.
pub fn with_misbehaviour(registry: Registry) -> Result<Registry, registry::Error> {
    match std::env::var_os("QUEUE_FAULT_HANDLER") {
        Some(_) => Ok(registry.with(Misbehave)?),
        None => Ok(registry),
    }
}
