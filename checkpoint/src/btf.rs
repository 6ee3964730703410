//! What the running kernel tells about its own types (docs.kernel.org, "BPF Type Format").

use std::collections::VecDeque;

/// `/sys/kernel/btf/vmlinux`, parsed as far as to be looked through.
pub(crate) struct Btf<'a> {
    bytes: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins; number 0 is `void`.
    types: Vec<usize>,
}

/// BTF_KIND_*
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const FUNCTION: u32 = 12;

impl<'a> Btf<'a> {
    /// None if this is not BTF, or of another byte order.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        const MAGIC: u32 = 0xeb9f;
        let header = |n: usize| Some(word(bytes, 4 * n)? as usize);
        let length = header(1)?;
        let part = |at: usize, size: usize| bytes.get(length + at..length + at + size);
        let (types, strings) = (part(header(2)?, header(3)?)?, part(header(4)?, header(5)?)?);
        let mut all = Self { bytes: types, strings, types: vec![0] };
        let mut at = 0;
        while at < types.len() && word(bytes, 0)? & 0xffff == MAGIC {
            all.types.push(at);
            let (kind, members) = kind(word(types, at + 4)?);
            at += 12
                + match kind {
                    // INT, VAR, DECL_TAG
                    1 | 14 | 17 => 4,
                    // ARRAY
                    3 => 12,
                    // ENUM, FUNC_PROTO
                    6 | 13 => 8 * members,
                    // STRUCT, UNION, DATASEC, ENUM64
                    STRUCT | UNION | 15 | 19 => 12 * members,
                    _ => 0,
                };
        }
        (all.types.len() > 1).then_some(all)
    }

    /// The number of a function.
    pub(crate) fn function(&self, name: &str) -> Option<u32> {
        self.named(FUNCTION, name).and_then(|id| u32::try_from(id).ok())
    }

    /// Size of a structure in bytes.
    pub(crate) fn size(&self, name: &str) -> Option<usize> {
        Some(word(self.bytes, self.types[self.named(STRUCT, name)?] + 8)? as usize)
    }

    /// Where in a structure a member is, or a member's member, in bytes.
    pub(crate) fn offset(&self, structure: &str, path: &[&str]) -> Option<usize> {
        let first = (self.named(STRUCT, structure)?, 0);
        path.iter().try_fold(first, |(id, at), name| self.member(id, at, name)).map(|(_, at)| at)
    }

    fn named(&self, wanted: u32, name: &str) -> Option<usize> {
        (1..self.types.len()).find(|id| {
            let at = self.types[*id];
            word(self.bytes, at + 4).is_some_and(|info| kind(info).0 == wanted)
                && self.name(at) == Some(name.as_bytes())
        })
    }

    fn name(&self, at: usize) -> Option<&[u8]> {
        let rest = self.strings.get(word(self.bytes, at)? as usize..)?;
        rest.split(|byte| *byte == 0).next()
    }

    /// The type of a member and its place, also if it is in a part without a name.
    fn member(&self, structure: usize, place: usize, name: &str) -> Option<(usize, usize)> {
        let mut parts = VecDeque::from([(structure, place)]);
        while let Some((id, place)) = parts.pop_front() {
            let at = *self.types.get(id)?;
            let info = word(self.bytes, at + 4)?;
            let (kind, members) = kind(info);
            if kind != STRUCT && kind != UNION {
                continue;
            }
            for member in 0..members {
                let at = at + 12 + 12 * member;
                let id = word(self.bytes, at + 4)? as usize;
                // With bit fields in the structure, the upper byte is their width.
                let bits = word(self.bytes, at + 8)? & if info >> 31 == 1 { 0x00ff_ffff } else { u32::MAX };
                let place = place + bits as usize / 8;
                match self.name(at)? {
                    [] => parts.push_back((id, place)),
                    found if found == name.as_bytes() => return Some((id, place)),
                    _ => {}
                }
            }
        }
        None
    }
}

fn kind(info: u32) -> (u32, usize) {
    (info >> 24 & 0x1f, (info & 0xffff) as usize)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_running_kernel_is_read() {
        let bytes = std::fs::read("/sys/kernel/btf/vmlinux").expect("this kernel tells its types");
        let btf = Btf::parse(&bytes).unwrap();
        // include/uapi/linux/time_types.h and include/uapi/asm-generic/siginfo.h: fixed for ever.
        assert_eq!(btf.size("__kernel_timespec"), Some(16));
        assert_eq!(btf.offset("__kernel_timespec", &["tv_nsec"]), Some(8));
        assert_eq!(btf.offset("siginfo", &["_sifields", "_kill", "_uid"]), Some(20));
        assert_eq!(btf.offset("siginfo", &["si_code"]), Some(8));
        assert_eq!(btf.offset("siginfo", &["nothing"]), None);
        assert!(btf.function("bpf_iter_task").is_some());
        assert!(btf.function("siginfo").is_none());
    }

    #[test]
    fn what_is_no_btf_is_nothing() {
        assert!(Btf::parse(b"").is_none());
        assert!(Btf::parse(&[0; 100]).is_none());
        let bytes = std::fs::read("/sys/kernel/btf/vmlinux").expect("this kernel tells its types");
        assert!(Btf::parse(&bytes[..1000]).is_none());
    }
}
