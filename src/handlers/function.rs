//! Handlers that are functions with a state, for those who need no type of their own.

use std::{future::Future, marker::PhantomData};

use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::{
    Ended, Faults, RunContext,
    typed::{Erased, Run, decode, ended},
};

/// A function that does the work, and what it is given each time.
pub(super) struct Function<S, P, F> {
    pub job_type: String,
    pub state: S,
    pub work: F,
    pub payload: PhantomData<fn(P)>,
}

impl<S, P, O, F, Fut> Erased for Function<S, P, F>
where
    S: Clone + Send + Sync + 'static,
    P: DeserializeOwned + JsonSchema + Send + 'static,
    O: Serialize + Send,
    F: Fn(RunContext, S, P) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<O, crate::job::Failure>> + Send,
{
    fn check(&self, payload: &RawValue) -> Result<Faults, serde_path_to_error::Error<serde_json::Error>> {
        decode::<P>(payload).map(|_| Faults::default())
    }

    fn run<'a>(&'a self, ctx: &'a RunContext, payload: &'a RawValue) -> Run<'a> {
        Box::pin(async move {
            match decode::<P>(payload) {
                Ok(payload) => ended((self.work)(ctx.clone(), self.state.clone(), payload).await),
                Err(e) => Ended::does_not_fit(&self.job_type, &e),
            }
        })
    }
}
