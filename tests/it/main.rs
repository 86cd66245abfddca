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
mod drain;
mod enqueue;
mod harness;
mod http;
mod load;
mod outage;
mod probe;
mod proxy;
mod receiver;
mod retry;
mod sockets;
mod web;
