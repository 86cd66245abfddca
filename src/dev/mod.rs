//! What `queue-service dev` and the tests start beside the service. Nothing here is reachable in other commands.

pub mod sandbox;
