//! The promises of the service, a file per promise, against a real Postgres and a real nats-server.
//!
//! All tests are in one program, so that they share the two servers; each has a database and a prefix of its own.

mod harness;
mod probe;

mod cancel;
mod dead_letter;
mod delay;
mod drain;
mod enqueue;
mod events;
mod health;
mod import;
mod list;
mod micro;
mod model;
mod pause;
mod progress;
mod retry;
mod schema;
mod stats;
mod wait;
mod wire;
