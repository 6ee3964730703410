//! Ranges of pages, and CRIU's page maps (`images/pagemap.proto`).

use std::io;
use std::ops::Range;

use protobuf::CodedInputStream;

use super::PAGE;

/// Ranges of addresses in order, none of which touches another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<Range<u64>>);

impl Ranges {
    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.0.iter().cloned()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    pub(super) fn contains(&self, address: u64) -> bool {
        self.around(address).is_some()
    }

    /// The range that this address is in.
    pub(super) fn around(&self, address: u64) -> Option<Range<u64>> {
        let next = self.0.partition_point(|range| range.end <= address);
        self.0.get(next).filter(|range| range.start <= address).cloned()
    }

    pub(super) fn add(&mut self, new: Range<u64>) {
        if new.is_empty() {
            return;
        }
        let from = self.0.partition_point(|range| range.end < new.start);
        let to = self.0.partition_point(|range| range.start <= new.end);
        let start = self.0.get(from).filter(|_| from < to).map_or(new.start, |first| first.start.min(new.start));
        let end = self.0[..to].last().filter(|_| from < to).map_or(new.end, |last| last.end.max(new.end));
        self.0.splice(from..to, std::iter::once(start..end));
    }

    /// In time that grows with how many ranges there are, as all that follows: writes here and there make a hundred thousand.
    pub(super) fn add_all(&mut self, other: &Self) {
        let mut all: Vec<Range<u64>> = self.iter().chain(other.iter()).collect();
        // (Of two runs in order: this finds them.)
        all.sort_by_key(|range| range.start);
        let mut joined = Self(Vec::with_capacity(all.len()));
        all.into_iter().for_each(|range| joined.add(range));
        *self = joined;
    }

    pub(super) fn remove(&mut self, old: &Range<u64>) {
        *self = self.without(&Self(vec![old.clone()]));
    }

    pub(super) fn without(&self, others: &Self) -> Self {
        let mut left = Self::default();
        let mut others = others.0.as_slice();
        for mut range in self.iter() {
            while let Some((other, rest)) = others.split_first().filter(|(other, _)| other.start < range.end) {
                left.add(range.start..other.start.min(range.end));
                range.start = range.start.max(other.end);
                if other.end > range.end {
                    break;
                }
                others = rest;
            }
            left.add(range);
        }
        left
    }

    /// Takes the first so many bytes away.
    pub(super) fn take(&mut self, most: u64) -> Self {
        let mut room = most;
        let fits = |range: &&Range<u64>| {
            let left = room.checked_sub(range.end - range.start);
            room = left.unwrap_or(room);
            left.is_some()
        };
        let whole = self.0.iter().take_while(fits).count();
        let mut taken: Vec<Range<u64>> = self.0.drain(..whole).collect();
        if let Some(next) = self.0.first_mut().filter(|_| room > 0) {
            taken.push(next.start..next.start + room);
            next.start += room;
        }
        Self(taken)
    }

    /// Groups of ranges with at most this many bytes in all; larger ranges are divided.
    pub(super) fn pieces(&self, most: u64) -> Vec<Vec<Range<u64>>> {
        let mut groups: Vec<Vec<Range<u64>>> = Vec::new();
        let mut room = 0;
        for mut range in self.iter() {
            while !range.is_empty() {
                if room == 0 {
                    groups.push(Vec::new());
                    room = most;
                }
                let end = range.end.min(range.start + room);
                room -= end - range.start;
                groups.last_mut().into_iter().for_each(|group| group.push(range.start..end));
                range.start = end;
            }
        }
        groups
    }
}

/// `PE_PARENT`, `PE_LAZY` and `PE_PRESENT` (criu/include/pagemap.h).
const IN_PARENT: u64 = 1;
const LAZY: u64 = 1 << 1;
const PRESENT: u64 = 1 << 2;

/// A message of numbers, after its length.
fn message(image: &mut Vec<u8>, fields: &[(u8, u64)]) {
    let mut bytes = Vec::new();
    for (number, value) in fields {
        bytes.push(number << 3);
        crate::clocks::varint(&mut bytes, *value);
    }
    image.extend((bytes.len() as u32).to_le_bytes());
    image.append(&mut bytes);
}

/// A page map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Map {
    /// Of the page file, in which the content of its [present](Entry::is_present) entries is, one after the other.
    pub(super) id: u32,
    pub(super) entries: Vec<Entry>,
}

/// Pages, and where their content is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) range: Range<u64>,
    flags: u64,
}

impl Entry {
    /// One that is in the page file.
    pub(super) fn present(range: Range<u64>) -> Self {
        Self { range, flags: PRESENT }
    }

    #[cfg(test)]
    pub(super) fn left_behind(range: Range<u64>) -> Self {
        Self { range, flags: LAZY }
    }

    /// In the page file.
    pub(super) fn is_present(&self) -> bool {
        self.flags & PRESENT != 0
    }

    /// Neither in the page file nor in earlier ones: it stays where it is, and comes later.
    pub(super) fn is_left_behind(&self) -> bool {
        self.flags & (LAZY | PRESENT | IN_PARENT) == LAZY
    }
}

impl Map {
    /// Of a round: `written` is in the page file `id`, one range after the other, the rest of `copied` in earlier rounds.
    pub(super) fn of_round(id: u32, written: &Ranges, copied: &Ranges) -> Self {
        let mut entries: Vec<Entry> = written.iter().map(Entry::present).collect();
        entries.extend(copied.without(written).iter().map(|range| Entry { range, flags: IN_PARENT }));
        entries.sort_by_key(|entry| entry.range.start);
        Self { id, entries }
    }

    /// All of it is in the page file `id`.
    pub(super) fn present(id: u32, pages: &Ranges) -> Self {
        Self { id, entries: pages.iter().map(Entry::present).collect() }
    }

    /// As an image.
    pub(super) fn encode(&self) -> Vec<u8> {
        /// `IMG_COMMON_MAGIC` and `PAGEMAP_MAGIC` (criu/include/magic.h).
        const MAGIC: [u32; 2] = [0x5456_4319, 0x5608_4025];
        let mut image: Vec<u8> = MAGIC.iter().flat_map(|word| word.to_le_bytes()).collect();
        message(&mut image, &[(1, self.id.into())]);
        for Entry { range, flags } in &self.entries {
            let pages = (range.end - range.start) / PAGE;
            // The second field is that of CRIUs before 4.1, which took no more.
            message(&mut image, &[(1, range.start), (2, pages.min(u32::MAX.into())), (4, *flags), (5, pages)]);
        }
        image
    }

    /// Of an image.
    ///
    /// # Errors
    /// It is damaged.
    pub(super) fn parse(image: &[u8]) -> io::Result<Self> {
        let mut map = Self { id: 0, entries: Vec::new() };
        let mut rest = image.get(8..).ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut is_head = true;
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let (bytes, after) =
                after.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or(io::ErrorKind::UnexpectedEof)?;
            rest = after;
            // Of the head: the first field is the page file.
            let (mut first, mut old_pages, mut flags, mut pages) = (0, 0, 0, None);
            let mut fields = CodedInputStream::from_bytes(bytes);
            while let Some(tag) = fields.read_raw_tag_or_eof()? {
                let value = fields.read_uint64()?;
                match tag >> 3 {
                    1 => first = value,
                    2 => old_pages = value,
                    4 => flags = value,
                    5 => pages = Some(value),
                    _ => {}
                }
            }
            if std::mem::take(&mut is_head) {
                map.id = u32::try_from(first).map_err(io::Error::other)?;
            } else {
                let end = pages.unwrap_or(old_pages).checked_mul(PAGE).and_then(|bytes| first.checked_add(bytes));
                let end = end.filter(|_| first % PAGE == 0).ok_or(io::ErrorKind::InvalidData)?;
                map.entries.push(Entry { range: first..end, flags });
            }
        }
        Ok(map)
    }

    /// All that was [left behind](Entry::is_left_behind).
    pub(super) fn left_behind(&self) -> Ranges {
        let mut left = Ranges::default();
        let entries = self.entries.iter().filter(|entry| entry.is_left_behind());
        entries.for_each(|entry| left.add(entry.range.clone()));
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(all: &[Range<u64>]) -> Ranges {
        let mut ranges = Ranges::default();
        all.iter().for_each(|range| ranges.add(range.clone()));
        ranges
    }

    /// Numbers below another one, the same in each run.
    fn seeded() -> impl FnMut(u64) -> u64 {
        let mut seed = 7u64;
        move |n| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % n
        }
    }

    #[test]
    fn what_touches_becomes_one() {
        assert_eq!(ranges(&[4..6, 0..2, 2..4]), ranges(&[0..3, 3..6]));
        assert_eq!(ranges(&[0..2, 8..9, 3..5, 1..4]).0, [0..5, 8..9]);
        assert_eq!(ranges(&[0..9, 3..5, 7..7]), ranges(&[0..9, 2..2]));
    }

    #[test]
    fn removing_splits() {
        let mut ranges = ranges(&[0..10, 20..30]);
        ranges.remove(&(5..22));
        assert_eq!(ranges.0, [0..5, 22..30]);
        ranges.remove(&(24..25));
        assert_eq!(ranges.0, [0..5, 22..24, 25..30]);
        ranges.remove(&(0..100));
        assert_eq!(ranges.0, []);
    }

    #[test]
    fn many_at_once_are_the_same_as_one_by_one() {
        let mut random = seeded();
        let mut some = |n: u64| {
            let all: Vec<Range<u64>> = (0..n).map(|_| random(300)).map(|start| start..start + 1 + start % 7).collect();
            ranges(&all)
        };
        for n in 0..200 {
            let (first, second) = (some(n % 40), some(n % 23));
            let mut added = first.clone();
            second.iter().for_each(|range| added.add(range));
            let kept = first.iter().flatten().filter(|at| !second.iter().any(|range| range.contains(at)));
            let kept: Vec<Range<u64>> = kept.map(|at| at..at + 1).collect();
            let mut at_once = first.clone();
            at_once.add_all(&second);
            assert_eq!(at_once, added, "{first:?} and {second:?}");
            assert_eq!(first.without(&second), ranges(&kept), "{first:?} without {second:?}");
        }
    }

    /// Against the plainest way to do it.
    #[test]
    fn ranges_are_sets_of_numbers() {
        use std::collections::BTreeSet;
        let mut below = seeded();
        let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
        for _ in 0..5000 {
            let start = below(200);
            let range = start..start + below(20);
            if below(2) == 0 {
                ranges.add(range.clone());
                set.extend(range);
            } else {
                ranges.remove(&range);
                set.retain(|n| !range.contains(n));
            }
            assert_eq!(ranges.iter().flatten().collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
            assert!(ranges.0.windows(2).all(|pair| pair[0].end < pair[1].start), "{ranges:?}");
        }
    }

    #[test]
    fn what_is_taken_is_gone() {
        let all = ranges(&[0..5, 7..8, 9..12]);
        for most in 0..12 {
            let mut left = all.clone();
            let taken = left.take(most);
            assert_eq!(taken.bytes(), most.min(9), "{taken:?}");
            assert_eq!(all.without(&taken), left, "{most}");
        }
    }

    #[test]
    fn maps_come_back() {
        let map = Map::of_round(
            7,
            &ranges(&[4 * PAGE..8 * PAGE, 9 * PAGE..10 * PAGE]),
            &ranges(&[0..5 * PAGE, 7 * PAGE..7 * PAGE]),
        );
        let image = map.encode();
        assert_eq!(Map::parse(&image).unwrap(), map);
        assert_eq!(map.entries.iter().map(Entry::is_present).collect::<Vec<_>>(), [false, true, true]);
        assert_eq!(map.left_behind(), Ranges::default());
        assert!(Map::parse(&image[..image.len() - 1]).is_err());
        let crooked = Map { id: 7, entries: vec![Entry::present(1..PAGE + 1)] };
        assert!(Map::parse(&crooked.encode()).is_err());
    }

    #[test]
    fn pieces_are_bounded() {
        let pieces = ranges(&[0..5, 7..8, 9..12]).pieces(4);
        assert_eq!(pieces.concat(), [0..4, 4..5, 7..8, 9..11, 11..12]);
        assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [1, 3, 1]);
        assert!(ranges(&[]).pieces(4).is_empty());
    }
}
