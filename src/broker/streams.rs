//! Streams: made when missing, changed only on a real difference, and smaller where the broker has no room for all. The
//! shapes are data in `nats/`.
//!
//! Invariant: a stream that is refused is noted, costs what depends on it, and holds up no other.

use std::sync::{MutexGuard, PoisonError, atomic::Ordering};

use bytesize::ByteSize;
use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Broker, Error,
    findings::{self, Part, Stream},
    topology::{INTAKE, STREAM_NOT_FOUND, StreamInfo, WorkStream, differs, merged},
};

/// JetStream's codes. Source: nats-server `server/errors.json`.
const NO_ROOM: [u64; 5] = [10002, 10023, 10028, 10047, 10122];
const CONSUMERS_LIMIT: u64 = 10026;
const INVALID_CONFIG: u64 = 10052;
const SUBJECTS_OVERLAP: u64 = 10065;

/// Whether the server answers before it has handed a message to the operating system. See docs/adr/0019.
const PERSIST_MODE: &str = "persist_mode";
/// Never changed on a live stream.
const FIXED: [&str; 2] = [PERSIST_MODE, "max_consumers"];
/// What the files share out.
const TOTAL: f64 = (2u64 << 30) as f64;
/// No stream is made smaller than this for want of room, nor all of them smaller than one part in so many.
const LEAST_BYTES: u64 = 4 << 20;
const LEAST_SCALE: f64 = 1.0 / 64.0;

/// What the broker allows, as far as it was learned on this connection.
#[derive(Debug)]
pub(super) struct Allowed {
    connects: u64,
    /// Part of `nats.store` for streams that are made.
    scale: f64,
    /// Streams that are smaller than they should be were tried to be made larger, once.
    has_grown: bool,
    /// The server's own length of the window for duplicates.
    own_window: bool,
    pub unanswered: Option<usize>,
}

impl Default for Allowed {
    fn default() -> Self {
        Self { connects: 0, scale: 1.0, has_grown: false, own_window: false, unanswered: None }
    }
}

impl Stream {
    fn shape(self) -> &'static str {
        match self {
            Self::WakeUps => include_str!("../../nats/streams/background-jobs.json"),
            Self::DeadLetters => include_str!("../../nats/streams/background-jobs-dlq.json"),
            Self::Events => include_str!("../../nats/streams/background-jobs-events.json"),
            Self::Inbox => include_str!("../../nats/streams/background-jobs-inbox.json"),
            Self::InboxDeadLetters => include_str!("../../nats/streams/background-jobs-inbox-dlq.json"),
        }
    }
}

impl Broker {
    /// Makes or mends the stream of wake-ups. `None`: the broker refuses it, which is noted.
    ///
    /// # Errors
    /// The broker is away, does not answer now, or is too old.
    pub async fn ensure_work_stream(&self) -> Result<Option<WorkStream>, Error> {
        let name = self.subjects.jobs_stream();
        if let Err(e) = self.check_server() {
            if matches!(e, Error::TooOld { .. }) {
                self.findings.note(Part::Stream(Stream::WakeUps), &name, e.to_string(), findings::advice(&e));
            }
            return Err(e);
        }
        let connects = self.connects();
        self.begin_look(connects);
        match self.ensure_stream(Stream::WakeUps).await {
            Err(e) if e.is_passing() => Err(e),
            looked => {
                let work = self.looked(Stream::WakeUps, &name, looked).await?;
                self.lanes.note_stream_refused(work.is_none());
                self.incarnation.verified.store(connects, Ordering::SeqCst);
                Ok(work.map(WorkStream::of))
            }
        }
    }

    /// Makes or mends all other streams and the consumer of the inbox; what the broker refuses is noted.
    ///
    /// # Errors
    /// The broker is away.
    pub async fn ensure_other_streams(&self) -> Result<(), Error> {
        let others = Stream::ALL.into_iter().filter(|stream| *stream != Stream::WakeUps);
        // Together: each may keep us waiting for an answer. Those that need room get it one after the other.
        let looks = others.map(|stream| async move {
            let name = self.subjects.stream(stream.name());
            let looked = match stream {
                Stream::Inbox => self.ensure_inbox(&name).await,
                _ => self.ensure_stream(stream).await.map(drop),
            };
            let found = self.looked(stream, &name, looked).await?;
            if stream == Stream::Inbox {
                self.lanes.note_inbox_refused(found.is_none());
            }
            Ok(())
        });
        let looked = join_all(looks).await;
        self.lock_allowed().has_grown = true;
        looked.into_iter().collect()
    }

    /// With its consumer.
    async fn ensure_inbox(&self, name: &str) -> Result<(), Error> {
        let info = self.ensure_stream(Stream::Inbox).await?;
        self.note_inbox_life(info.created);
        self.ensure_consumer(name, INTAKE, &self.subjects.rebase("queue.inbox.*")).await
    }

    /// Notes how a look ended. A failure that may pass counts when it comes twice.
    async fn looked<T>(&self, stream: Stream, name: &str, looked: Result<T, Error>) -> Result<Option<T>, Error> {
        let part = Part::Stream(stream);
        match looked {
            Ok(found) => {
                self.findings.clear(part, name);
                Ok(Some(found))
            }
            Err(e) if !self.is_connected() => Err(e),
            Err(e) if e.is_passing() && !self.findings.doubt(part, name) => {
                tracing::debug!("{name} can't be looked at now: {e}");
                self.suspect();
                Ok(None)
            }
            Err(e) => {
                let mut why = findings::words(&e);
                if matches!(e, Error::Api { code: SUBJECTS_OVERLAP, .. }) {
                    why.push_str(&self.who_has(stream, name).await);
                }
                self.findings.note(part, name, why, findings::advice(&e));
                Ok(None)
            }
        }
    }

    /// Names the streams of others that take our subjects.
    async fn who_has(&self, stream: Stream, ours: &str) -> String {
        #[derive(Deserialize)]
        struct Names {
            streams: Option<Vec<String>>,
        }
        let Ok(config) = self.stream_config(stream, 1.0) else { return String::new() };
        let subject = &config["subjects"][0];
        let Ok(names) = self.api::<Names>("STREAM.NAMES".into(), &json!({"subject": subject})).await else {
            return String::new();
        };
        let names: Vec<_> = names.streams.unwrap_or_default().into_iter().filter(|name| name != ours).collect();
        let subject = subject.as_str().unwrap_or_default();
        if names.is_empty() { String::new() } else { format!("; {} takes {subject}", names.join(", ")) }
    }

    async fn ensure_stream(&self, stream: Stream) -> Result<StreamInfo, Error> {
        let name = self.subjects.stream(stream.name());
        match self.api::<StreamInfo>(format!("STREAM.INFO.{name}"), &json!({})).await {
            Err(Error::Api { code: STREAM_NOT_FOUND, .. }) => self.make_stream(stream, &name).await,
            Ok(info) => self.mend_stream(stream, &name, info).await,
            Err(e) => Err(e),
        }
    }

    /// Makes a stream; with less room where the broker has not as much.
    async fn make_stream(&self, stream: Stream, name: &str) -> Result<StreamInfo, Error> {
        // One at a time, so that each knows what the others were given.
        let _turn = self.making.lock().await;
        let mut consumers = None;
        loop {
            let scale = self.lock_allowed().scale;
            let mut wanted = self.stream_config(stream, scale)?;
            if let Some(consumers) = consumers {
                wanted["max_consumers"] = json!(consumers);
            }
            let refused = match self.api::<StreamInfo>(format!("STREAM.CREATE.{name}"), &wanted).await {
                Ok(info) => {
                    tracing::info!("made the stream {name}");
                    self.note_size(stream, name, &info)?;
                    return Ok(info);
                }
                Err(e) => e,
            };
            match code_of(&refused) {
                Some(CONSUMERS_LIMIT) if consumers.is_none() && !wanted["max_consumers"].is_null() => {
                    consumers = Some(self.allowed_consumers().await);
                }
                Some(INVALID_CONFIG) if self.takes_own_window(&refused) => {}
                Some(code) if NO_ROOM.contains(&code) && scale > LEAST_SCALE => {
                    self.lock_allowed().scale = scale / 2.0;
                    self.make_room().await;
                }
                _ => return Err(refused),
            }
        }
    }

    /// Lets our own streams that are nearly empty have only their share of what there is.
    async fn make_room(&self) {
        let scale = self.lock_allowed().scale;
        for stream in Stream::ALL {
            let name = self.subjects.stream(stream.name());
            let Ok(info) = self.api::<StreamInfo>(format!("STREAM.INFO.{name}"), &json!({})).await else { continue };
            let Ok(wanted) = self.stream_config(stream, scale) else { continue };
            let size = wanted["max_bytes"].as_u64().unwrap_or_default();
            if bytes_of(&info.config) > size && info.state.bytes <= size / 2 {
                let update = merged(info.config, &json!({"max_bytes": size}));
                if let Ok(info) = self.api::<StreamInfo>(format!("STREAM.UPDATE.{name}"), &update).await {
                    let _ = self.note_size(stream, &name, &info);
                }
            }
        }
    }

    /// How many consumers the account may have; -1: as many as it likes.
    async fn allowed_consumers(&self) -> i64 {
        #[derive(Deserialize)]
        struct Account {
            limits: Limits,
        }
        #[derive(Deserialize)]
        struct Limits {
            max_consumers: i64,
        }
        let account = self.api::<Account>("INFO".into(), &json!({})).await;
        account.ok().map(|account| account.limits.max_consumers).filter(|n| *n > 0).unwrap_or(-1)
    }

    /// Whether it was our window for duplicates that is longer than the server allows, and is left to it from now on.
    fn takes_own_window(&self, refused: &Error) -> bool {
        let is_window = matches!(refused, Error::Api { description, .. } if description.contains("duplicates window"));
        is_window && !std::mem::replace(&mut self.lock_allowed().own_window, true)
    }

    /// Brings a stream that is there to what is wanted, as far as the broker allows.
    async fn mend_stream(&self, stream: Stream, name: &str, found: StreamInfo) -> Result<StreamInfo, Error> {
        let (scale, has_grown) = {
            let allowed = self.lock_allowed();
            (allowed.scale, allowed.has_grown)
        };
        // Fixed for the life of a stream, and refused by the server together with copies. Only news are written that way.
        if found.config[PERSIST_MODE] == "async" && self.settings.replicas != 1 {
            tracing::warn!("making the stream {name} anew, since it can't have copies as it is; its messages are gone");
            self.api::<Value>(format!("STREAM.DELETE.{name}"), &json!({})).await?;
            return self.make_stream(stream, name).await;
        }
        let mut size = None;
        loop {
            let mut wanted = self.stream_config(stream, scale)?;
            if let Value::Object(fields) = &mut wanted {
                FIXED.iter().for_each(|field| drop(fields.remove(*field)));
            }
            if has_grown && bytes_of(&found.config) < bytes_of(&wanted) {
                size = Some(bytes_of(&found.config));
            }
            if let Some(size) = size {
                wanted["max_bytes"] = json!(size);
            }
            if !differs(&wanted, &found.config) {
                self.note_size(stream, name, &found)?;
                return Ok(found);
            }
            let update = merged(found.config.clone(), &wanted);
            let refused = match self.api::<StreamInfo>(format!("STREAM.UPDATE.{name}"), &update).await {
                Ok(info) => {
                    tracing::info!("updated the stream {name}");
                    self.note_size(stream, name, &info)?;
                    return Ok(info);
                }
                Err(e) => e,
            };
            match code_of(&refused) {
                Some(INVALID_CONFIG) if self.takes_own_window(&refused) => {}
                Some(code) if NO_ROOM.contains(&code) && size.is_none() => size = Some(bytes_of(&found.config)),
                Some(_) => {
                    let why = format!("is not as the settings want it; {}", findings::words(&refused));
                    self.findings.note(Part::Shape, name, why, findings::advice(&refused));
                    return Ok(found);
                }
                None => return Err(refused),
            }
        }
    }

    /// It is as the settings want it, but for its size.
    fn note_size(&self, stream: Stream, name: &str, info: &StreamInfo) -> Result<(), Error> {
        self.findings.clear(Part::Shape, name);
        let (wanted, size) = (bytes_of(&self.stream_config(stream, 1.0)?), bytes_of(&info.config));
        if size < wanted {
            let why = format!(
                "has {} instead of {}, which is its part of nats.store: JetStream has no room for more",
                ByteSize(size),
                ByteSize(wanted)
            );
            let advice = "Give it more room (max_file_store of the server, or the account's limit) and restart this \
                          service, or lower nats.store";
            self.findings.note(Part::Limits, name, why, advice.into());
        } else {
            self.findings.clear(Part::Limits, name);
        }
        Ok(())
    }

    fn begin_look(&self, connects: u64) {
        let mut allowed = self.lock_allowed();
        if allowed.connects != connects {
            *allowed = Allowed { connects, ..Allowed::default() };
        }
    }

    pub(super) fn lock_allowed(&self) -> MutexGuard<'_, Allowed> {
        self.allowed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `scale`: the part of `nats.store` that there is room for.
    fn stream_config(&self, stream: Stream, scale: f64) -> Result<Value, Error> {
        let name = stream.name();
        let mut config: Value =
            serde_json::from_str(stream.shape()).map_err(|source| Error::Topology { name, source })?;
        config["name"] = json!(self.subjects.stream(name));
        config["num_replicas"] = json!(self.settings.replicas);
        let own_window = self.lock_allowed().own_window;
        if let Value::Object(fields) = &mut config {
            if self.settings.replicas > 1 {
                // Copies are written in the background anyhow, and the server refuses both together.
                fields.remove(PERSIST_MODE);
            }
            if own_window {
                fields.remove("duplicate_window");
            }
        }
        // Another total than that of the files is shared out in the same proportion.
        let share = config["max_bytes"].as_u64().unwrap_or_default() as f64 / TOTAL;
        let whole = (self.settings.store_bytes as f64 * share) as u64;
        config["max_bytes"] = json!(((whole as f64 * scale) as u64).max(LEAST_BYTES.min(whole)));
        if let Value::Array(subjects) = &mut config["subjects"] {
            subjects.iter_mut().for_each(|s| *s = json!(self.subjects.rebase(s.as_str().unwrap_or_default())));
        }
        if let Some(Value::Object(transform)) = config.get_mut("subject_transform") {
            transform.values_mut().for_each(|s| *s = json!(self.subjects.rebase(s.as_str().unwrap_or_default())));
        }
        Ok(config)
    }
}

fn code_of(error: &Error) -> Option<u64> {
    match error {
        Error::Api { code, .. } => Some(*code),
        _ => None,
    }
}

fn bytes_of(config: &Value) -> u64 {
    config["max_bytes"].as_u64().unwrap_or(u64::MAX)
}
