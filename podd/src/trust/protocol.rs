//! Versions of the protocol between hosts. Hosts speak the newest that both know; each podd knows its own and the one before, so
//! that a fleet can be upgraded host by host. Hosts that are further apart refuse each other before anything is said.

use serde::{Deserialize, Serialize};

/// What two podds speak; told apart by ALPN (RFC 7301), within the TLS handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum Protocol {
    /// Moves, rehearsals, status and patch runs.
    V1,
    /// Memory may be compressed on its way.
    V2,
}

impl Protocol {
    /// The newest.
    pub const NEWEST: Self = Self::V2;

    /// ALPN names to offer, the newest first, of a host that speaks this one at most.
    #[must_use]
    pub fn offers(self) -> &'static [&'static str] {
        const ALL: [&str; 2] = ["podd-peer/2", "podd-peer/1"];
        match self {
            Self::V2 => &ALL,
            Self::V1 => &ALL[1..],
        }
    }

    /// The one that was agreed on; none: another protocol was.
    #[must_use]
    pub fn agreed(alpn: Option<&[u8]>) -> Option<Self> {
        [Self::V1, Self::V2].into_iter().find(|version| alpn == Some(version.offers()[0].as_bytes()))
    }
}

impl TryFrom<u8> for Protocol {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, String> {
        let found = [Self::V1, Self::V2].into_iter().find(|version| u8::from(*version) == number);
        found.ok_or_else(|| format!("this podd speaks versions 1 and 2 of the protocol between hosts, not {number}"))
    }
}

impl From<Protocol> for u8 {
    fn from(version: Protocol) -> u8 {
        match version {
            Protocol::V1 => 1,
            Protocol::V2 => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_host_offers_what_it_may_speak_and_what_was_before() {
        assert_eq!(Protocol::NEWEST.offers(), ["podd-peer/2", "podd-peer/1"]);
        assert_eq!(Protocol::V1.offers(), ["podd-peer/1"]);
        assert_eq!(Protocol::agreed(Some(b"podd-peer/1")), Some(Protocol::V1));
        assert_eq!(Protocol::agreed(Some(b"podd-peer/2")), Some(Protocol::V2));
        assert_eq!((Protocol::agreed(Some(b"http/1.1")), Protocol::agreed(None)), (None, None));
    }

    #[test]
    fn an_operator_may_hold_a_host_to_an_older_one() {
        let protocol = |text: &str| toml::from_str::<crate::config::Config>(text).map(|config| config.protocol);
        assert_eq!(protocol("").unwrap(), Protocol::NEWEST);
        assert_eq!(protocol("protocol = 1").unwrap(), Protocol::V1);
        assert!(protocol("protocol = 3").unwrap_err().to_string().contains("versions 1 and 2"));
    }
}
