//! The door for NATS: a micro-service (ADR-32) that any client in any language can ask.
//!
//! Written over plain subscriptions, because the client's own service loses the body of errors, panics on line breaks in
//! their text, and keeps no true counts. It translates between messages and [`Ops::call`], and decides nothing but
//! whether there is room for one more request.

mod discovery;
mod endpoint;
mod reply;

use std::sync::Arc;

use async_nats::SubscribeError;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    broker::Broker,
    config::Config,
    flow::Budget,
    ops::{Ops, VERBS, Verb},
    supervise::{Name, Tasks},
};
use endpoint::Endpoint;

/// Replicas share it, so that each request reaches one of them. Source: NATS ADR-32, default queue group.
const QUEUE_GROUP: &str = "q";
/// Bytes of requests that may be worked on at the same time.
const MAX_BYTES: usize = 256 << 20;

/// What all endpoints of this process share.
pub(crate) struct Shared {
    ops: Ops,
    broker: Broker,
    replies: reply::Replies,
    budget: Budget,
    reply_prefixes: Vec<String>,
    tasks: Tasks,
}

/// Answers requests on `tasks` until `stop`, and those that would wait until the service begins to stop; what was received
/// by then is still answered.
///
/// # Errors
/// The connection to NATS is closed for good.
pub async fn start(
    ops: Ops,
    broker: &Broker,
    config: &Config,
    stop: &CancellationToken,
    tasks: &Tasks,
) -> Result<(), SubscribeError> {
    let shared = Arc::new(Shared {
        ops,
        broker: broker.clone(),
        replies: reply::Replies::new(broker),
        budget: Budget::new(config.rpc.max_in_flight, MAX_BYTES),
        reply_prefixes: config.nats.reply_prefixes.clone(),
        tasks: tasks.clone(),
    });
    let endpoints: Arc<[Arc<Endpoint>]> = VERBS.into_iter().flat_map(|verb| both(broker, verb)).collect();
    for endpoint in endpoints.iter() {
        // Who asks for something to wait for finds another replica then, if there is one.
        let stop = if endpoint.verb.waits() { shared.ops.supervisor.stopping() } else { stop };
        let requests = broker.rpc.queue_subscribe(endpoint.subject.clone(), QUEUE_GROUP.to_owned()).await?;
        let (shared, endpoint, requests) = (shared.clone(), endpoint.clone(), Arc::new(Mutex::new(requests)));
        let (name, stopped) = (Name::of("rpc", &endpoint.name), stop.clone());
        tasks.keep(name, stop, move || {
            endpoint::serve(shared.clone(), endpoint.clone(), requests.clone(), stopped.clone())
        });
    }
    discovery::start(shared, endpoints, stop, tasks).await
}

/// A verb for all types, and for the one that the subject names.
fn both(broker: &Broker, verb: Verb) -> [Arc<Endpoint>; 2] {
    let subject = broker.subjects.rpc(verb.name());
    let scoped = format!("{subject}.*");
    // The name of an endpoint has no dots. Source: NATS ADR-32.
    let name = verb.name().replace('.', "-");
    [
        Arc::new(Endpoint::new(name.clone(), subject, verb)),
        Arc::new(Endpoint::new(format!("{name}-typed"), scoped, verb)),
    ]
}
