//! The promises of the service, a file per promise, against a real Postgres and a real nats-server.
//!
//! All tests are in one program, so that they share the two servers; each has a database and a prefix of its own.

mod bad_input;
mod books;
mod cancel;
mod child;
mod cli;
mod cluster;
mod crash;
mod database;
mod dead_letter;
mod delay;
mod dev;
mod disk;
mod disk_full;
mod docs;
mod drain;
mod enqueue;
mod events;
mod failover;
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
mod own;
mod pause;
mod plans;
mod probe;
mod progress;
mod proxy;
mod receiver;
mod retry;
mod rollback;
mod schema;
mod sockets;
mod stats;
mod wait;
mod web;
mod wire;
