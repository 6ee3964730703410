//! Frames between two podds. Pure: bytes in, bytes out; the connection (mutual TLS) belongs to podd, and so do the
//! messages.
//!
//! ```text
//! offset  0      4         6      7       8        12         20
//!         | PODW | version | kind | flags | length | checksum | payload ...
//!           4 B    u16       u8     u8      u32      u64        `length` bytes     (all little-endian)
//! ```
//!
//! A *control* frame carries one message (serde, bincode 2, at most [`MAX_CONTROL`] bytes). A *data* frame carries raw
//! bytes of the stream that the last control message announced (at most [`MAX_DATA`] bytes); its last frame says so,
//! so that a cut is never mistaken for an end. TLS already keeps strangers out: the checksum catches faults of memory,
//! disk and code on the way, and covers the header's fields as well (they are its seed).
//!
//! What the frames carry in a migration; the messages are podd's (`pod/migrate`):
//!
//! ```text
//!   source                                            target
//!     | -- control  hello: version, host facts ---------> |
//!     | <- control  hello: version, host facts ---------- |
//!     | -- control  offer: pod, layers, sizes, epoch ---> |  preflight, then reserve name, address, memory, disk
//!     | <- control  accepted (layers wanted) | refused -- |
//!     | -- control + data ..  layers, writable layer ---> |  the pod still runs; rounds until little is left
//!     |  freeze                                           |
//!     | -- control + data ..  last changes, memory -----> |  verify, restore, hold still
//!     | <- control  ready | failed ---------------------- |
//!   ==|== source records `given to T, epoch E` ===========|==  HANDOVER: before it the source thaws on any failure,
//!     | -- control  commit -----------------------------> |    after it never: it asks the target
//!     |                                                   |  record commit, announce, thaw
//!     | <- control  thawed ------------------------------ |
//!     |  delete the copy                                  |
//! ```
//!
//! Messages are encoded with integers of fixed width: bincode's byte limit counts an integer's full width, so only
//! then does everything that was encoded within the limit also decode within it. They must not use serde attributes
//! that need a self-describing format (`flatten`, `untagged`, `tag`, `skip_serializing_if`), nor lists of empty
//! structs, whose length costs a hostile sender nothing.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::{Serialize, de::DeserializeOwned};
use xxhash_rust::xxh3::xxh3_64_with_seed;

#[cfg(test)]
mod tests;

/// Bytes of a frame's header.
pub const HEADER: usize = 20;
/// Largest payload of a control frame, in bytes.
pub const MAX_CONTROL: usize = 4 << 20;
/// Largest payload of a data frame, in bytes: 1 MiB and room for what a stream puts before its blocks.
pub const MAX_DATA: usize = (1 << 20) + 4096;
/// The version that this build writes. A second one comes with a rule: answer in the version of the peer's hello.
pub const VERSION: u16 = 1;
/// The oldest version that this build reads: the previous one, once there is one.
pub const OLDEST: u16 = 1;
const _: () = assert!(OLDEST == VERSION || OLDEST + 1 == VERSION);

const MAGIC: [u8; 4] = *b"PODW";
const CONTROL: u8 = 1;
const DATA: u8 = 2;
const LAST: u8 = 1;
const CONFIG: Configuration<LittleEndian, Fixint, Limit<MAX_CONTROL>> =
    bincode::config::standard().with_fixed_int_encoding().with_limit();

/// What a frame's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The sender's version, from [`OLDEST`] to [`VERSION`].
    pub version: u16,
    /// What the payload is.
    pub kind: Kind,
    /// Bytes of the payload, within the kind's limit.
    pub length: u32,
    checksum: u64,
}

/// What a frame's payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One message.
    Control,
    /// Raw bytes of the stream that the last control message announced.
    Data {
        /// The stream ends with this frame.
        last: bool,
    },
}

/// Why a frame was not made or not accepted. After any of these the connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The first bytes are no frame of ours.
    #[error(
        "the peer does not speak podd's migration protocol (a frame begins with {found:02x?}): check its address and port"
    )]
    Foreign {
        /// What stands in the magic's place.
        found: [u8; 4],
    },
    /// The peer's version is too new for this build.
    #[error(
        "the peer speaks migration protocol version {found}, this podd versions {OLDEST} to {VERSION}: upgrade podd on this host"
    )]
    TooNew {
        /// The peer's version.
        found: u16,
    },
    /// The peer's version is too old for this build.
    #[error(
        "the peer speaks migration protocol version {found}, this podd versions {OLDEST} to {VERSION}: upgrade podd on the peer"
    )]
    TooOld {
        /// The peer's version.
        found: u16,
    },
    /// A kind of frame or a flag that this version does not have.
    #[error("the peer sent a frame of unknown kind {kind} with flags {flags:#04x}")]
    UnknownKind {
        /// Kind byte.
        kind: u8,
        /// Flags byte.
        flags: u8,
    },
    /// The payload is above its kind's limit.
    #[error("a frame of {length} bytes is above the limit of {limit}")]
    TooLong {
        /// Bytes wanted.
        length: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A message where data belongs, or data where a message belongs.
    #[error("the peer sent a {found} frame where a {wanted} frame belongs")]
    WrongKind {
        /// What came.
        found: &'static str,
        /// What should have come.
        wanted: &'static str,
    },
    /// The payload handed in is not of the header's length.
    #[error("a frame announced {announced} bytes and has {actual}")]
    WrongLength {
        /// Bytes in the header.
        announced: u32,
        /// Bytes handed in.
        actual: usize,
    },
    /// The checksum does not match.
    #[error(
        "a frame was damaged on the way (checksum mismatch over {length} bytes): try again, and check the network and memory of both hosts if it recurs"
    )]
    Damaged {
        /// Bytes of the payload.
        length: u32,
    },
    /// The message does not decode.
    #[error("the peer sent a message that this podd cannot read: {0}")]
    Decode(#[source] bincode::error::DecodeError),
    /// Bytes are left after the message.
    #[error("the peer sent a message with {0} bytes too many")]
    Trailing(usize),
    /// The message does not encode.
    #[error("a message cannot be encoded: {0}")]
    Encode(#[source] bincode::error::EncodeError),
}

/// A whole control frame: header and message.
pub fn encode_control<T: Serialize + ?Sized>(message: &T) -> Result<Vec<u8>, Error> {
    let mut frame = vec![0; HEADER];
    bincode::serde::encode_into_std_write(message, &mut frame, CONFIG).map_err(Error::Encode)?;
    let (header, payload) = frame.split_at_mut(HEADER);
    header.copy_from_slice(&encode_header(Kind::Control, payload)?);
    Ok(frame)
}

/// The header to send before `payload`; `last` ends the stream (the payload may then be empty).
pub fn encode_data_header(payload: &[u8], last: bool) -> Result<[u8; HEADER], Error> {
    encode_header(Kind::Data { last }, payload)
}

/// Reads a header. Nothing needs to be allocated for the payload before this succeeds.
pub fn decode_header(bytes: &[u8; HEADER]) -> Result<Header, Error> {
    let [m0, m1, m2, m3, v0, v1, kind, flags, rest @ ..] = *bytes;
    let [l0, l1, l2, l3, checksum @ ..] = rest;
    let magic = [m0, m1, m2, m3];
    if magic != MAGIC {
        return Err(Error::Foreign { found: magic });
    }
    // The version comes first: all else may mean something different in another one.
    let version = match u16::from_le_bytes([v0, v1]) {
        found if found > VERSION => return Err(Error::TooNew { found }),
        found if found < OLDEST => return Err(Error::TooOld { found }),
        version => version,
    };
    let kind = match (kind, flags) {
        (CONTROL, 0) => Kind::Control,
        (DATA, 0) => Kind::Data { last: false },
        (DATA, LAST) => Kind::Data { last: true },
        (kind, flags) => return Err(Error::UnknownKind { kind, flags }),
    };
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    check_length(kind, length as usize)?;
    Ok(Header { version, kind, length, checksum: u64::from_le_bytes(checksum) })
}

/// The message of a control frame.
pub fn decode_control<T: DeserializeOwned>(header: &Header, payload: &[u8]) -> Result<T, Error> {
    if header.kind != Kind::Control {
        return Err(Error::WrongKind { found: "data", wanted: "control" });
    }
    verify(header, payload)?;
    let (message, used) = bincode::serde::decode_from_slice(payload, CONFIG).map_err(Error::Decode)?;
    match payload.len() - used {
        0 => Ok(message),
        left => Err(Error::Trailing(left)),
    }
}

/// Checks a data frame's payload; true: the stream ends with it.
pub fn verify_data(header: &Header, payload: &[u8]) -> Result<bool, Error> {
    let Kind::Data { last } = header.kind else {
        return Err(Error::WrongKind { found: "control", wanted: "data" });
    };
    verify(header, payload)?;
    Ok(last)
}

fn encode_header(kind: Kind, payload: &[u8]) -> Result<[u8; HEADER], Error> {
    check_length(kind, payload.len())?;
    let header = Header { version: VERSION, kind, length: payload.len() as u32, checksum: 0 };
    let mut bytes = [0; HEADER];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..12].copy_from_slice(&header.fields());
    bytes[12..].copy_from_slice(&header.checksum_of(payload).to_le_bytes());
    Ok(bytes)
}

fn verify(header: &Header, payload: &[u8]) -> Result<(), Error> {
    if payload.len() != header.length as usize {
        return Err(Error::WrongLength { announced: header.length, actual: payload.len() });
    }
    if header.checksum_of(payload) != header.checksum {
        return Err(Error::Damaged { length: header.length });
    }
    Ok(())
}

fn check_length(kind: Kind, length: usize) -> Result<(), Error> {
    let limit = match kind {
        Kind::Control => MAX_CONTROL,
        Kind::Data { .. } => MAX_DATA,
    };
    if length > limit { Err(Error::TooLong { length, limit }) } else { Ok(()) }
}

impl Header {
    /// The bytes between magic and checksum.
    fn fields(&self) -> [u8; 8] {
        let (kind, flags) = match self.kind {
            Kind::Control => (CONTROL, 0),
            Kind::Data { last } => (DATA, if last { LAST } else { 0 }),
        };
        let ([v0, v1], [l0, l1, l2, l3]) = (self.version.to_le_bytes(), self.length.to_le_bytes());
        [v0, v1, kind, flags, l0, l1, l2, l3]
    }

    fn checksum_of(&self, payload: &[u8]) -> u64 {
        xxh3_64_with_seed(payload, u64::from_le_bytes(self.fields()))
    }
}
