//! The promises of the service, a file per promise, against a real Postgres and a real nats-server.
//!
//! All tests are in one program, so that they share the two servers; each has a database and a prefix of its own.

mod bad_input;
mod books;
mod cancel;
mod child;
mod cli;
mod crash;
mod dead_letter;
mod delay;
mod dev;
mod docs;
mod drain;
mod enqueue;
mod events;
mod files;
mod foreign;
mod harness;
mod health;
mod http;
mod import;
mod list;
mod load;
mod micro;
mod model;
mod outage;
mod pause;
mod plans;
mod probe;
mod progress;
mod proxy;
mod receiver;
mod retry;
mod schema;
mod sockets;
mod stats;
mod wait;
mod web;
mod wire;
