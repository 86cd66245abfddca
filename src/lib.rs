//! queue-service: background jobs over NATS JetStream and Postgres, for programs in any language.
//!
//! The modules in reading order: the rules, then who owns which technology, then what the outside may ask, then the
//! run path, the duties in the background, the doors, and the leaves. Imports point downwards in this list only for
//! the leaves; ARCHITECTURE.md has the map.

// They panic when the reader of a pipe has gone away; see `telemetry`.
#![deny(clippy::print_stdout, clippy::print_stderr)]
// Tests see the panics of their tasks themselves.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod background;
#[allow(clippy::disallowed_methods, reason = "a panic in a measurement ends the measurement, which shows it")]
pub mod bench;
pub mod broker;
pub mod cli;
pub mod client;
pub mod config;
pub mod conformance;
pub mod dev;
pub mod embed;
pub mod faults;
pub mod flow;
pub mod handlers;
pub mod http;
pub mod inbox;
pub mod job;
pub mod ops;
pub mod outside;
pub mod rpc;
pub mod service;
pub mod store;
pub mod supervise;
pub mod telemetry;
pub mod types;
pub mod worker;

pub use client::{Client, Enqueue};
pub use embed::{Worker, testing};

/// The Rust in these pages must compile.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../README.md")]
    pub struct Readme;
    #[doc = include_str!("../ARCHITECTURE.md")]
    pub struct Architecture;
    #[doc = include_str!("../docs/rust.md")]
    pub struct Rust;
    #[doc = include_str!("../examples/README.md")]
    pub struct Examples;
}
