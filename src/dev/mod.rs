//! What makes the service run on a laptop without a network, for people and tests alike.

pub mod sandbox;
