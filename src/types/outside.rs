//! From a definition to something that can be run.

use std::{sync::Arc, time::Duration};

use serde_json::value::RawValue;

use super::definition::{Definition, Faults};
use crate::{
    config::Config,
    handlers::{
        AnyHandler, Ended, Faults as PayloadFaults, RunContext,
        typed::{Described, Erased, Run},
    },
    job::{JobType, Work},
};

/// Those who ask handlers outside.
#[derive(Default)]
pub struct Callers {}

/// The handler of a definition that has passed the rules for its fields.
pub(super) fn handler(
    job_type: JobType,
    definition: &Definition,
    _callers: &Callers,
    _config: &Config,
    _heartbeat: Option<Duration>,
) -> Result<AnyHandler, Faults> {
    let inner: Arc<dyn Erased> = match definition.handler {
        Work::Nats | Work::Http | Work::Pull | Work::Builtin => Arc::new(Fetched),
    };
    let described = Described {
        job_type,
        about: definition.description.clone().unwrap_or_default(),
        work: definition.handler,
        schema: definition.payload_schema.clone(),
        result_schema: definition.result_schema.clone(),
    };
    AnyHandler::described(described, inner).map_err(|faults| Faults(faults.0))
}

/// The work is fetched by programs outside, so it is never begun here.
struct Fetched;

impl Erased for Fetched {
    fn check(&self, _: &RawValue) -> Result<PayloadFaults, serde_path_to_error::Error<serde_json::Error>> {
        Ok(PayloadFaults::default())
    }

    fn run<'a>(&'a self, _: &'a RunContext, _: &'a RawValue) -> Run<'a> {
        Box::pin(std::future::ready(Ended::Released(Duration::from_secs(1))))
    }
}
