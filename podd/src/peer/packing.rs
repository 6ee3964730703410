//! Whether memory is compressed on its way: only as long as the link is what takes the time, and not this host. What the last
//! pieces have taken tells.

use std::io;
use std::time::{Duration, Instant};

use crate::api::ApiError;
use crate::error::{Attempt, Result};

/// zstd's quickest of the usual levels: some 400 MB/s a processor.
const LEVEL: i32 = 1;
/// Less than this is left as it is, and tells nothing about the link, in bytes.
const SMALL: usize = 64 << 10;
/// As many pieces of a MiB disappear in the buffers of a connection before it shows how quick it is.
const BLIND: u64 = 8;
/// After so many, one goes the other way: the link may be another one by now, and the memory too.
const AGAIN: u64 = 64;
/// How much the latest piece weighs.
const WEIGHT: f64 = 0.2;

/// What the last pieces have taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packing {
    pieces: u64,
    /// Seconds that a byte took on the link.
    link: f64,
    effort: Effort,
}

/// What it is to compress.
#[derive(Clone, Copy, Debug)]
struct Effort {
    /// Seconds that a byte takes.
    work: f64,
    /// What is left of a byte.
    rest: f64,
}

impl Effort {
    /// Before anything is known.
    const GUESS: Self = Self { work: 1.0 / 400e6, rest: 0.5 };

    /// Whether both together take less time than the link alone, and not by a hair.
    fn pays(self, link: f64) -> bool {
        self.work + self.rest * link < link * 0.9
    }
}

impl Default for Packing {
    fn default() -> Self {
        Self { pieces: 0, link: 0.0, effort: Effort::GUESS }
    }
}

impl Packing {
    /// A piece that is to be sent, compressed; none: it is sent as it is.
    ///
    /// # Errors
    /// zstd's.
    pub(super) fn pack(&mut self, data: &[u8]) -> io::Result<Option<Vec<u8>>> {
        if data.len() < SMALL {
            return Ok(None);
        }
        self.pieces += 1;
        if !self.is_worth_it() {
            return Ok(None);
        }
        let begun = Instant::now();
        let packed = tokio::task::block_in_place(|| zstd::bulk::compress(data, LEVEL))?;
        self.packed(data.len(), packed.len(), begun.elapsed());
        Ok((packed.len() < data.len() / 10 * 9).then_some(packed))
    }

    fn is_worth_it(&self) -> bool {
        let pays = self.effort.pays(self.link);
        self.pieces > BLIND
            && match self.pieces.is_multiple_of(AGAIN) {
                false => pays,
                true => !pays && Effort::GUESS.pays(self.link),
            }
    }

    fn packed(&mut self, before: usize, after: usize, took: Duration) {
        weigh(&mut self.effort.work, took.as_secs_f64() / before as f64);
        weigh(&mut self.effort.rest, after as f64 / before as f64);
    }

    /// So many bytes were given to the connection, which took so long to take them; not counted what it waited for the other end, which
    /// would wait no less for what it has to unpack.
    pub(super) fn sent(&mut self, bytes: usize, took: Duration) {
        if bytes >= SMALL {
            weigh(&mut self.link, took.as_secs_f64() / bytes as f64);
        }
    }
}

fn weigh(mean: &mut f64, latest: f64) {
    *mean += (latest - *mean) * WEIGHT;
}

/// A piece of `size` bytes as it was.
///
/// # Errors
/// It was none, or is of another size.
pub fn unpack(packed: &[u8], size: u32) -> Result<Vec<u8>> {
    let size = size as usize;
    if size > checkpoint::wire::MAX_DATA {
        return Err(ApiError::failed(format!("a compressed piece of {size} bytes is too large")));
    }
    let data = tokio::task::block_in_place(|| zstd::bulk::decompress(packed, size)).attempt("decompress memory")?;
    match data.len() == size {
        true => Ok(data),
        false => Err(ApiError::failed("a compressed piece is of another size than was said")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PIECE: usize = 1 << 20;

    /// How many of a thousand pieces are compressed, on a link and of memory like this.
    fn packed(link_mb_s: f64, pack_mb_s: f64, rest: f64) -> usize {
        let mut packing = Packing::default();
        let time = |bytes: f64, mb_s: f64| Duration::from_secs_f64(bytes / (mb_s * 1e6));
        let one = |_| {
            packing.pieces += 1;
            let is_packed = packing.is_worth_it();
            let size = if is_packed { PIECE as f64 * rest } else { PIECE as f64 };
            if is_packed {
                packing.packed(PIECE, size as usize, time(PIECE as f64, pack_mb_s));
            }
            packing.sent(size as usize, time(size, link_mb_s));
            usize::from(is_packed)
        };
        (0..1000).map(one).sum()
    }

    #[test]
    fn memory_is_compressed_where_the_link_is_slow_and_it_helps() {
        assert!(packed(12.0, 400.0, 0.4) > 950, "100 Mbit/s");
        assert!(packed(118.0, 400.0, 0.4) > 940, "1 Gbit/s");
        assert_eq!(packed(1200.0, 400.0, 0.4), 0, "10 Gbit/s");
        // Where it does not help, it is tried now and then.
        assert!((1..100).contains(&packed(12.0, 400.0, 1.0)), "of random bytes");
        assert!((1..100).contains(&packed(118.0, 60.0, 0.4)), "a slow processor");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_compressed_is_the_same_afterwards() {
        let mut packing = Packing { pieces: BLIND + 1, link: 1e-7, effort: Effort::GUESS };
        let data: Vec<u8> = (0..PIECE).map(|i| (i / 100) as u8).collect();
        let packed = packing.pack(&data).unwrap().unwrap();
        assert!(packed.len() < PIECE / 10);
        assert_eq!(unpack(&packed, PIECE as u32).unwrap(), data);
        assert!(unpack(&packed, PIECE as u32 - 1).is_err() && unpack(&packed, PIECE as u32 + 1).is_err());
        assert!(unpack(&packed[..100], PIECE as u32).is_err() && unpack(&packed, u32::MAX).is_err());
        assert_eq!(packing.pack(&data[..SMALL - 1]).unwrap(), None);
    }
}
