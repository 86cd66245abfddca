//! The trace that a job belongs to, so that a handler's spans hang on those of whoever asked for the job.
//!
//! Source: W3C Trace Context, <https://www.w3.org/TR/trace-context/#traceparent-header>. Pure.

use std::fmt;

use super::model::JobId;

/// A trace and its flags. The span is another one for each run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    id: u128,
    parent: u64,
    flags: u8,
}

impl Trace {
    /// Reads a `traceparent`. One that is not as the specification has it counts as none, as the specification demands.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, id, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let later = version != "00";
        let legal = |part: &str, len: usize| {
            part.len() == len && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let whole = legal(version, 2) && legal(id, 32) && legal(parent, 16) && legal(flags, 2);
        // Later versions may add parts.
        if !whole || version == "ff" || (!later && parts.next().is_some()) {
            return None;
        }
        let trace = Self {
            id: u128::from_str_radix(id, 16).ok()?,
            parent: u64::from_str_radix(parent, 16).ok()?,
            flags: u8::from_str_radix(flags, 16).ok()?,
        };
        (trace.id != 0 && trace.parent != 0).then_some(trace)
    }

    /// The trace of a job whose caller named none: the job's id, which logs and events have anyway.
    pub fn of_job(id: JobId) -> Self {
        Self { id: id.as_u128().max(1), parent: 1, flags: 0 }
    }

    /// The same trace with the span of one run, which is the same whenever it is asked for.
    pub fn of_run(self, id: JobId, run: i64) -> Self {
        // Fibonacci hashing spreads what differs in few bits.
        let mixed = (id.as_u128() as u64 ^ (run as u64).rotate_left(48)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { parent: mixed.max(1), ..self }
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.id, self.parent, self.flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_no_traceparent_counts_as_none() {
        assert_eq!(Trace::parse(GOOD).unwrap().to_string(), GOOD);
        assert!(Trace::parse(&format!("cc{}-new", &GOOD[2..])).is_some());
        let zero_id = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
        let zero_parent = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", "0".repeat(16));
        for bad in
            ["", "00", &GOOD.to_uppercase(), &format!("{GOOD}-x"), &format!("ff{}", &GOOD[2..]), &zero_id, &zero_parent]
        {
            assert_eq!(Trace::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn each_run_is_a_span_of_its_own_in_the_same_trace() {
        let job = uuid::Uuid::now_v7();
        let trace = Trace::parse(GOOD).unwrap();
        let (first, second) = (trace.of_run(job, 1).to_string(), trace.of_run(job, 2).to_string());
        assert_eq!((&first[..36], &first[52..]), (&GOOD[..36], "-01"));
        assert!(first != second && first == trace.of_run(job, 1).to_string());
        let own = Trace::of_job(job).of_run(job, 1).to_string();
        assert_eq!(own[3..35], job.simple().to_string());
    }
}
