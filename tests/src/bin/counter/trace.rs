//! What a client saw over time, in two lists of fixed steps: small however long it runs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// Step of the counts.
const COUNT: u64 = 100;
/// Step of the latencies.
const LATENCY: u64 = 5;

/// Replies in each 100 ms, and the longest latency of requests made in each 5 ms. Times are Unix time.
#[derive(Debug, Serialize)]
pub struct Trace {
    /// Begin of both lists, ms.
    begun_ms: u64,
    per_100_ms: Vec<u32>,
    /// In µs; 0: no request was made in this step.
    worst_us_per_5_ms: Vec<u32>,
}

impl Trace {
    pub fn new() -> Self {
        Self { begun_ms: unix_ms(SystemTime::now()), per_100_ms: Vec::new(), worst_us_per_5_ms: Vec::new() }
    }

    /// A reply that came now, `latency` after its request.
    pub fn note(&mut self, now: SystemTime, latency: Duration) {
        let count = slot(&mut self.per_100_ms, (unix_ms(now).saturating_sub(self.begun_ms)) / COUNT);
        *count += 1;
        let asked = unix_ms(now - latency).saturating_sub(self.begun_ms);
        let worst = slot(&mut self.worst_us_per_5_ms, asked / LATENCY);
        *worst = (*worst).max(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
    }
}

fn slot(list: &mut Vec<u32>, number: u64) -> &mut u32 {
    let number = usize::try_from(number).unwrap_or(0);
    if list.len() <= number {
        list.resize(number + 1, 0);
    }
    &mut list[number]
}

pub fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_counted_when_they_come_and_latencies_where_they_began() {
        let mut trace = Trace::new();
        let begun = UNIX_EPOCH + Duration::from_millis(trace.begun_ms);
        trace.note(begun + Duration::from_millis(1), Duration::from_micros(300));
        trace.note(begun + Duration::from_millis(2), Duration::from_micros(200));
        trace.note(begun + Duration::from_millis(250), Duration::from_millis(240));
        assert_eq!(trace.per_100_ms, [2, 0, 1]);
        assert_eq!(trace.worst_us_per_5_ms, [300, 0, 240_000]);
    }
}
