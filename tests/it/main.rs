//! The promises of the service, a file per promise, against a real Postgres and a real nats-server.
//!
//! All tests are in one program, so that they share the two servers; each has a database and a prefix of its own.

mod books;
mod child;
mod harness;
mod load;
mod probe;
mod proxy;
mod receiver;

mod bad_input;
mod crash;
mod http;
mod outage;
mod smoke;
mod sockets;
mod web;
