//! Callers that hand work in through the public interface, and remember every answer.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    checker::{Asked, Wanted},
    world::World,
};

/// Enough for every run that a fault may cost.
const PLENTY: i16 = 30;

#[derive(Clone)]
pub struct Driver {
    nats: async_nats::Client,
    prefix: String,
    journal: Arc<Mutex<Journal>>,
}

#[derive(Default)]
pub struct Journal {
    pub asked: Vec<Asked>,
    /// Requests that had no answer in time.
    pub unanswered: usize,
    pub refused: usize,
    pub duplicates: usize,
}

impl Driver {
    pub async fn new(world: &World) -> Self {
        Self { nats: world.nats().await, prefix: world.config.nats.prefix.clone(), journal: Arc::default() }
    }

    /// Everything so far.
    pub fn take(&self) -> Journal {
        std::mem::take(&mut *self.journal.lock().unwrap())
    }

    /// Several callers who go on until `stop`, a job each every `pause`.
    pub fn start(
        &self,
        seed: u64,
        callers: usize,
        pause: Duration,
        stop: &CancellationToken,
    ) -> tokio::task::JoinSet<()> {
        let mut all = tokio::task::JoinSet::new();
        for caller in 0..callers {
            let (driver, stop) = (self.clone(), stop.clone());
            all.spawn(async move {
                let mut rng = StdRng::seed_from_u64(seed ^ ((caller as u64 + 1) << 32));
                for n in 0.. {
                    driver.one(&mut rng, &format!("{seed}-{caller}-{n}")).await;
                    if stop.is_cancelled() {
                        return;
                    }
                    tokio::time::sleep(pause).await;
                }
            });
        }
        all
    }

    /// One job of a random kind.
    async fn one(&self, rng: &mut StdRng, key: &str) {
        let ms = if rng.random_bool(0.2) { rng.random_range(200..900) } else { rng.random_range(0..40) };
        let (wanted, failures, for_good, max_attempts) = match rng.random_range(0..100) {
            0..70 => (Wanted::Success { after_failures: 0 }, 0, false, PLENTY),
            70..82 => (Wanted::Success { after_failures: 2 }, 2, false, PLENTY),
            82..88 => (Wanted::Failure, 1000, false, 2),
            88..94 => (Wanted::Failure, 1000, true, PLENTY),
            _ => (Wanted::MayBeCancelled, 0, false, PLENTY),
        };
        let mut request = json!({
            "type": "chaos",
            "payload": {"ms": ms, "failures": failures, "forGood": for_good},
            "maxAttempts": max_attempts,
            "priority": rng.random_range(-1..=1),
        });
        if rng.random_bool(0.15) {
            request["delay"] = json!("200ms");
        }
        let keyed = rng.random_bool(0.7);
        if keyed {
            request["idempotencyKey"] = json!(key);
        }
        let twice = keyed && rng.random_bool(0.3);
        let (first, second) = tokio::join!(self.enqueue(&request, keyed), async {
            if twice { self.enqueue(&request, true).await } else { Vec::new() }
        });
        let accepted: Vec<String> = first.into_iter().chain(second).collect();
        if let (Wanted::MayBeCancelled, Some(id)) = (wanted, accepted.first()) {
            let _ = self.ask("cancelJob", &json!({"jobId": id})).await;
        }
        let key = keyed.then(|| key.to_owned());
        self.journal.lock().unwrap().asked.push(Asked { key, wanted, max_attempts, accepted });
    }

    /// Asks until there is an answer, where a key makes that safe; else once.
    pub async fn enqueue(&self, request: &Value, again: bool) -> Vec<String> {
        for _ in 0..200 {
            match self.ask("enqueue", request).await {
                Some(answer) if answer["jobId"].is_string() => {
                    self.journal.lock().unwrap().duplicates += usize::from(answer["duplicate"] == true);
                    return vec![answer["jobId"].as_str().unwrap().to_owned()];
                }
                Some(refusal) => {
                    assert!(matches!(refusal["code"].as_str(), Some("unavailable" | "overloaded")), "{refusal}");
                    self.journal.lock().unwrap().refused += 1;
                }
                None => self.journal.lock().unwrap().unanswered += 1,
            }
            if !again {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Vec::new()
    }

    pub fn note(&self, asked: Asked) {
        self.journal.lock().unwrap().asked.push(asked);
    }

    async fn ask(&self, verb: &str, body: &Value) -> Option<Value> {
        let subject = format!("{}.{verb}", self.prefix);
        let asked = self.nats.request(subject, body.to_string().into());
        let answer = tokio::time::timeout(Duration::from_secs(3), asked).await.ok()?.ok()?;
        serde_json::from_slice(&answer.payload).ok()
    }
}
