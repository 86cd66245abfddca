//! The job types that there are now: those of the program, those of the configuration, and those that are registered
//! while the service runs.
//!
//! Every role looks into one live list, which is replaced as a whole and never edited, so whoever holds a snapshot
//! works with types that fit together. `background::types` keeps it up to date.

pub mod definition;
pub(crate) mod introduction;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, watch};

use crate::{
    config::{Config, TypeSettings},
    handlers::{AnyHandler, Registry},
    job::{JobType, Work},
    outside::Callers,
    store::types::TypeRow,
};
pub use definition::Definition;

/// Shortest time between two searches that callers cause, and longest wait for one.
const SEARCH_PAUSE: Duration = Duration::from_secs(1);
const SEARCH_PATIENCE: Duration = Duration::from_secs(1);

/// A job type and all that is in force for it.
pub struct Known {
    pub handler: Arc<AnyHandler>,
    pub settings: TypeSettings,
    pub origin: Origin,
    /// How often a run outside has to give a sign of life; `None`: its timeout decides.
    pub heartbeat: Option<Duration>,
    /// Where an `http` handler is asked.
    pub url: Option<String>,
    /// The text that it was made from, to see whether it has changed.
    text: Option<String>,
}

/// Who said that there is such a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// It comes with the program.
    Builtin,
    /// The section `types` of the configuration.
    Configuration,
    /// Somebody asked for it while the service ran.
    Registered,
    /// A handler was found on the bus that says so.
    Discovered,
}

/// All types at one moment.
#[derive(Default)]
pub struct Snapshot {
    types: BTreeMap<JobType, Arc<Known>>,
    pub paused: BTreeSet<String>,
    /// Those of the types that nobody answers for, as workers have noted.
    pub unattended: BTreeSet<String>,
}

/// The live list. Cheap to clone; all clones are one list.
#[derive(Clone)]
pub struct Types {
    config: Arc<Config>,
    callers: Arc<Callers>,
    /// What can't change while the process runs.
    fixed: Arc<BTreeMap<JobType, Arc<Known>>>,
    live: Arc<watch::Sender<Arc<Snapshot>>>,
    search: Arc<Search>,
}

/// The search for handlers on the bus, as those see it who wait for it.
struct Search {
    wanted: Notify,
    /// How often it was begun, and the newest of those rounds that is over.
    begun: AtomicU64,
    over: watch::Sender<u64>,
    last: Mutex<Option<Instant>>,
}

/// Why a process can't start with these types.
#[derive(Debug, thiserror::Error)]
#[error("types.{job_type}: {message}")]
pub struct Error {
    pub job_type: String,
    pub message: String,
}

impl Types {
    /// The types of the program and of the configuration.
    ///
    /// # Errors
    /// A section of the configuration that does not fit.
    pub fn new(config: Arc<Config>, registry: &Registry, callers: Callers) -> Result<Self, Error> {
        let mut fixed = BTreeMap::new();
        for handler in registry.iter() {
            let name = handler.job_type.as_str();
            let settings = handler.settings(&config).map_err(|message| Error { job_type: name.to_owned(), message })?;
            if config.types.get(name).is_some_and(|section| section.handler.is_some()) {
                let message = "comes with the program, so its handler can't be another one".to_owned();
                return Err(Error { job_type: name.to_owned(), message });
            }
            let handler = handler.clone();
            let known = Known { handler, settings, origin: Origin::Builtin, heartbeat: None, url: None, text: None };
            fixed.insert(known.handler.job_type.clone(), Arc::new(known));
        }
        for (name, section) in &config.types {
            if section.handler.is_none() {
                continue;
            }
            let fault = |message: String| Error { job_type: name.clone(), message };
            let definition = Definition::of_section(section).map_err(fault)?;
            let known = definition.build(name, Origin::Configuration, &config, &callers, None);
            let known = known.map_err(|faults| fault(faults.to_string()))?;
            fixed.insert(known.handler.job_type.clone(), Arc::new(known));
        }
        let first = Snapshot { types: fixed.clone(), ..Snapshot::default() };
        let live = Arc::new(watch::channel(Arc::new(first)).0);
        let search = Search {
            wanted: Notify::new(),
            begun: AtomicU64::new(0),
            over: watch::channel(0).0,
            last: Mutex::default(),
        };
        Ok(Self { config, callers: Arc::new(callers), fixed: Arc::new(fixed), live, search: Arc::new(search) })
    }

    /// Has handlers looked for on the bus, and returns when that is done. Once a second at most, so that callers who ask
    /// for nonsense can't make much of it.
    pub async fn search(&self) {
        if !self.config.nats.discovery {
            return;
        }
        let mut over = self.search.over.subscribe();
        // One that is under way may have asked too early.
        let next = self.search.begun.load(Ordering::SeqCst) + 1;
        let now = Instant::now();
        {
            let mut last = self.search.last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_some_and(|at| now - at < SEARCH_PAUSE) {
                return;
            }
            *last = Some(now);
        }
        self.search.wanted.notify_one();
        let _ = tokio::time::timeout(SEARCH_PATIENCE, over.wait_for(|round| *round >= next)).await;
    }

    /// Returns when somebody wants a search.
    pub(crate) async fn wanted(&self) {
        self.search.wanted.notified().await;
    }

    /// A search begins; gives its number.
    pub(crate) fn begin_search(&self) -> u64 {
        self.search.begun.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The search of this number is over.
    pub(crate) fn end_search(&self, round: u64) {
        self.search.over.send_replace(round);
    }

    /// The types as they are now.
    pub fn now(&self) -> Arc<Snapshot> {
        self.live.borrow().clone()
    }

    /// Tells of each change.
    pub fn changes(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.live.subscribe()
    }

    /// Whether `name` belongs to the program or the configuration, so that nobody may define it.
    pub fn fixed(&self, name: &str) -> Option<&Arc<Known>> {
        self.fixed.get(name)
    }

    /// Checks a definition.
    ///
    /// # Errors
    /// Every fault, with the JSON pointer into the definition.
    pub fn check(&self, name: &str, definition: &Definition) -> Result<Known, definition::Faults> {
        definition.build(name, Origin::Registered, &self.config, &self.callers, None)
    }

    /// Takes over what the database has. A definition that can't be used (an older version of the program may have let
    /// it pass) is left out and told in the log; those that have not changed stay the very same.
    pub fn replace(&self, rows: Vec<TypeRow>) {
        let before = self.now();
        let mut types = (*self.fixed).clone();
        let (mut paused, mut unattended) = (BTreeSet::new(), BTreeSet::new());
        for row in rows {
            if row.paused {
                paused.insert(row.name.clone());
            }
            if row.unattended {
                unattended.insert(row.name.clone());
            }
            let Some(text) = row.definition.filter(|_| !self.fixed.contains_key(row.name.as_str())) else { continue };
            let origin = if row.discovered { Origin::Discovered } else { Origin::Registered };
            let same =
                before.get(&row.name).filter(|known| known.origin == origin && known.text.as_ref() == Some(&text));
            let known = match same {
                Some(known) => known.clone(),
                None => match self.read(&row.name, text, origin) {
                    Ok(known) => Arc::new(known),
                    Err(why) => {
                        tracing::warn!("left out the type '{}', whose definition can't be used: {why}", row.name);
                        continue;
                    }
                },
            };
            types.insert(known.handler.job_type.clone(), known);
        }
        unattended.retain(|name| types.contains_key(name.as_str()));
        self.live.send_if_modified(|live| {
            let same_types = live.types.len() == types.len()
                && live.types.values().zip(types.values()).all(|(a, b)| Arc::ptr_eq(a, b));
            if same_types && live.paused == paused && live.unattended == unattended {
                return false;
            }
            *live = Arc::new(Snapshot { types, paused, unattended });
            true
        });
    }

    fn read(&self, name: &str, text: String, origin: Origin) -> Result<Known, String> {
        let definition: Definition = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        definition.build(name, origin, &self.config, &self.callers, Some(text)).map_err(|faults| faults.to_string())
    }
}

impl Snapshot {
    pub fn get(&self, name: &str) -> Option<&Arc<Known>> {
        self.types.get(name)
    }

    /// In the order of the alphabet.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Known>> {
        self.types.values()
    }

    /// Whether somebody answers for a type; `None` where that can't be known, since its workers come by themselves.
    pub fn attended(&self, known: &Known) -> Option<bool> {
        match known.handler.work {
            Work::Builtin => Some(true),
            Work::Nats | Work::Http => Some(!self.unattended.contains(known.name())),
            Work::Pull | Work::Embedded => None,
        }
    }
}

impl Known {
    /// Whether it was discovered, and is described in another way now.
    pub(crate) fn is_discovered_otherwise(&self, definition: &serde_json::Value) -> bool {
        let same = |text: &String| serde_json::from_str::<serde_json::Value>(text).is_ok_and(|had| had == *definition);
        self.origin == Origin::Discovered && !self.text.as_ref().is_some_and(same)
    }

    pub fn name(&self) -> &str {
        self.handler.job_type.as_str()
    }
}
