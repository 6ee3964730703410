//! The token of an invitation: `podd1.` and hexadecimal digits, one line.

use std::fmt;

use super::TrustError;
use super::certificate::{digest, hex};

const PREFIX: &str = "podd1.";
const FINGERPRINT: usize = 32;
/// 128 bits: cannot be guessed, whatever the number of tries.
const SECRET: usize = 16;
const CHECKSUM: usize = 4;

/// What a host that joins must know: which CA, which secret, which name, and whom it asks.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Token {
    /// SHA-256 of the CA certificate.
    pub(super) fingerprint: [u8; FINGERPRINT],
    pub(super) secret: [u8; SECRET],
    /// The host that is invited.
    pub(super) name: String,
    /// The host that invites: no other host of the fleet may take the secret.
    pub(super) authority: String,
}

impl Token {
    pub(super) fn parse(text: &str) -> Result<Self, TrustError> {
        let digits = text.trim().strip_prefix(PREFIX).ok_or(TrustError::Token("it does not start with `podd1.`"))?;
        let bytes =
            unhex(digits).ok_or(TrustError::Token("there are other characters in it than hexadecimal digits"))?;
        let damaged = TrustError::Token("characters are missing or wrong");
        let Some((body, checksum)) = bytes.split_last_chunk::<CHECKSUM>() else {
            return Err(damaged);
        };
        if digest(body)[..CHECKSUM] != checksum[..] {
            return Err(damaged);
        }
        let parts = || {
            let (fingerprint, rest) = body.split_first_chunk::<FINGERPRINT>()?;
            let (secret, rest) = rest.split_first_chunk::<SECRET>()?;
            let (name, authority) = std::str::from_utf8(rest).ok()?.split_once('@')?;
            let (name, authority) = (name.to_owned(), authority.to_owned());
            Some(Self { fingerprint: *fingerprint, secret: *secret, name, authority })
        };
        parts().ok_or(damaged)
    }

    /// The secret, as it is sent and hashed.
    pub(super) fn secret(&self) -> String {
        hex(&self.secret)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut body = [&self.fingerprint[..], &self.secret].concat();
        body.extend_from_slice(format!("{}@{}", self.name, self.authority).as_bytes());
        let checksum = digest(&body);
        write!(out, "{PREFIX}{}{}", hex(&body), hex(&checksum[..CHECKSUM]))
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?;
    let pairs = digits.chunks_exact(2);
    pairs.remainder().is_empty().then(|| pairs.map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn token() -> Token {
        Token { fingerprint: [7; 32], secret: [0xfe; 16], name: "web-1".into(), authority: "a".into() }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let text = token().to_string();
        assert!(text.starts_with("podd1.0707") && !text.contains(char::is_whitespace));
        assert!(Token::parse(&format!("  {text}\n")).unwrap() == token());
    }

    #[test]
    fn every_cut_and_every_changed_character_is_noticed() {
        let text = token().to_string();
        for at in 0..text.len() {
            assert!(matches!(Token::parse(&text[..at]), Err(TrustError::Token(_))), "cut at {at}");
            let other = if &text[at..=at] == "0" { "1" } else { "0" };
            let changed = format!("{}{other}{}", &text[..at], &text[at + 1..]);
            assert!(matches!(Token::parse(&changed), Err(TrustError::Token(_))), "changed at {at}");
        }
    }

    proptest! {
        #[test]
        fn anything_else_is_refused(text in "\\PC*") {
            prop_assert!(Token::parse(&text).is_err());
            let prefixed = format!("podd1.{text}");
            prop_assert!(Token::parse(&prefixed).is_err());
        }
    }
}
