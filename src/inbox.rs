//! The door for those who only publish: takes in what the stream `background-jobs-inbox` holds, once per message id.
//!
//! The publisher has the broker's acknowledgement, so nothing here may be lost: a message is acknowledged when its job is
//! committed, or when it is in the stream of those that can't be taken in, with the reason.

use std::{sync::Arc, time::Duration};

use async_nats::{Message, SubscribeError};
use tokio::sync::{Mutex, Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{
    broker::{
        findings::Stream,
        publish::Outgoing,
        pull::{AckHandle, LanePull},
    },
    ops::{ApiError, Code, EnqueueOptions, Ops, error::Fault},
    supervise::{self, Tasks},
};

/// Messages that are being taken in at the same time.
const AT_ONCE: usize = 256;
/// How often requests that the broker can't answer any more are forgotten.
const TICK: Duration = Duration::from_millis(500);
/// When a message comes again that could not be taken in now.
const LATER: Duration = Duration::from_secs(2);
/// Longest pause before one comes again that the service could not take in by a fault of its own or of the database's, and how
/// often it is tried: for some minutes.
const LONGEST: Duration = Duration::from_secs(60);
const TRIES: u32 = 10;
/// Longest message id. Source: docs/protocol.md.
const ID_MAX: usize = 200;
/// Kept free below the broker's limit for the headers of a bad message.
const FRAME: usize = 8 * 1024;
/// Longest text of a reason, in bytes.
const REASON_MAX: usize = 1000;

/// Takes messages in until the service begins to stop, on `tasks`.
///
/// # Errors
/// The client is closed.
pub async fn start(ops: &Ops, tasks: &Tasks) -> Result<(), SubscribeError> {
    let stop = ops.supervisor.stopping();
    let pull = Arc::new(Mutex::new(LanePull::of_inbox(&ops.broker).await?));
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let (ops, stopped) = (ops.clone(), stop.clone());
    tasks.keep("inbox", stop, move || serve(ops.clone(), pull.clone(), room.clone(), stopped.clone()));
    Ok(())
}

async fn serve(ops: Ops, pull: Arc<Mutex<LanePull>>, room: Arc<Semaphore>, stop: CancellationToken) {
    let mut pull = pull.lock().await;
    let mut tick = tokio::time::interval(TICK);
    let done = Arc::new(Notify::new());
    loop {
        let free = room.available_permits();
        if free > pull.credit() && (pull.credit() == 0 || free - pull.credit() >= AT_ONCE / 4) {
            let more = free - pull.credit();
            pull.request(more).await;
        }
        tokio::select! {
            biased;
            _ = stop.cancelled() => break,
            Some(pulled) = pull.next_message() => {
                let Some((message, ack)) = pulled else { continue };
                let Ok(turn) = room.clone().acquire_owned().await else { return };
                let (ops, done) = (ops.clone(), done.clone());
                supervise::spawn("inbox message", async move {
                    take_in(&ops, &message, &ack).await;
                    drop(turn);
                    done.notify_one();
                });
            }
            _ = done.notified() => {}
            _ = tick.tick() => pull.tick(),
        }
    }
    // What is being taken in is finished; what was on its way comes again, here or elsewhere.
    let _ = room.acquire_many(AT_ONCE as u32).await;
}

async fn take_in(ops: &Ops, message: &Message, ack: &AckHandle) {
    let broker = &ops.broker;
    let refused = match enqueue(ops, message, ack).await {
        Ok(()) => return ack.ack(broker).await,
        Err(refused) => refused,
    };
    match refused.code {
        Code::Overloaded | Code::Unavailable => return ack.nak(broker, LATER).await,
        // Maybe it is this message that the database refuses, so it is not tried for ever.
        Code::Internal if ack.deliveries() < TRIES => {
            let pause = LATER * 2u32.saturating_pow(ack.deliveries().saturating_sub(1));
            return ack.nak(broker, pause.min(LONGEST)).await;
        }
        _ => {}
    }
    match set_aside(ops, message, ack, &refused).await {
        true => ack.ack(broker).await,
        false => ack.nak(broker, LATER).await,
    }
}

async fn enqueue(ops: &Ops, message: &Message, ack: &AckHandle) -> Result<(), ApiError> {
    let token = message.subject.rsplit('.').next().unwrap_or_default();
    let scope = ops.type_named(token)?;
    let id = match header(message, "Nats-Msg-Id") {
        Some(id) if (1..=ID_MAX).contains(&id.chars().count()) => id.to_owned(),
        Some(_) => {
            let detail = format!("Nats-Msg-Id must have 1 to {ID_MAX} characters");
            return Err(ApiError::new(Code::InvalidRequest, detail));
        }
        // Its place in the stream: also a redelivery is the same message.
        None => place(ops, ack),
    };
    let options = EnqueueOptions {
        message_id: Some(&id),
        traceparent: header(message, "traceparent"),
        ..EnqueueOptions::default()
    };
    ops.enqueue(Some(&scope), &message.payload, options).await.map(|_| ())
}

/// Where a message stands in the inbox, and no other one ever.
fn place(ops: &Ops, ack: &AckHandle) -> String {
    format!("{}/{}", ops.broker.inbox_life(), ack.stream_sequence().unwrap_or_default())
}

/// Keeps a bad message, with the reason. `false`: the broker has not acknowledged it.
async fn set_aside(ops: &Ops, message: &Message, ack: &AckHandle, refused: &ApiError) -> bool {
    let broker = &ops.broker;
    let token = message.subject.rsplit('.').next().unwrap_or_default();
    tracing::warn!("set a message of the inbox aside ({token}): {}", refused.detail);
    let mut headers =
        vec![("Error-Code", refused.code.as_str().to_owned()), ("Error-Detail", one_line(&reason(refused)))];
    headers.extend(header(message, "Nats-Msg-Id").map(|id| ("Original-Msg-Id", one_line(id))));
    let limit = broker.jetstream.max_payload().saturating_sub(FRAME);
    let body = match message.payload.len() > limit {
        true => {
            headers.push(("Body-Cut", format!("the first {limit} of {} bytes", message.payload.len())));
            message.payload.slice(..limit)
        }
        false => message.payload.clone(),
    };
    let outgoing = Outgoing {
        stream: Stream::InboxDeadLetters,
        subject: broker.subjects.inbox_dead_letter(token),
        message_id: Some(place(ops, ack)),
        headers,
        body,
    };
    ops.publisher.publish(vec![outgoing]).await == [true]
}

fn reason(refused: &ApiError) -> String {
    let one = |fault: &Fault| match fault.path.is_empty() {
        true => fault.message.clone(),
        false => format!("{}: {}", fault.path, fault.message),
    };
    match refused.errors.as_slice() {
        [] => refused.detail.clone(),
        faults => faults.iter().map(one).collect::<Vec<_>>().join("; "),
    }
}

/// Fit for a header.
fn one_line(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    line.truncate(line.floor_char_boundary(REASON_MAX));
    line
}

fn header<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    message.headers.as_ref()?.get(name).map(|value| value.as_str())
}
