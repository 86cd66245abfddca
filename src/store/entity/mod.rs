//! What rows look like to reads.

pub mod job;
