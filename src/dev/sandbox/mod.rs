//! Stand-ins for the outside world: what the handlers speak with when there is nobody else.

pub mod smtp;
