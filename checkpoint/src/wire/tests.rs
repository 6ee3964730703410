#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::*;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Message {
    Hello { version: u16, facts: BTreeMap<String, String> },
    Blocks(Vec<(u64, u32)>),
    Blob(Vec<u8>),
    Ready,
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        (any::<u16>(), any::<BTreeMap<String, String>>())
            .prop_map(|(version, facts)| Message::Hello { version, facts }),
        any::<Vec<(u64, u32)>>().prop_map(Message::Blocks),
        any::<Vec<u8>>().prop_map(Message::Blob),
        Just(Message::Ready),
    ]
}

fn split(frame: &[u8]) -> ([u8; HEADER], &[u8]) {
    (frame[..HEADER].try_into().unwrap(), &frame[HEADER..])
}

fn read(frame: &[u8]) -> Result<Message, Error> {
    let (header, payload) = split(frame);
    decode_control(&decode_header(&header)?, payload)
}

/// A control frame whose checksum is right whatever its payload is.
fn sealed(payload: &[u8]) -> Vec<u8> {
    [&encode_header(Kind::Control, payload).unwrap()[..], payload].concat()
}

proptest! {
    #[test]
    fn messages_come_back(message in message()) {
        prop_assert_eq!(read(&encode_control(&message).unwrap()).unwrap(), message);
    }

    #[test]
    fn data_comes_back(payload: Vec<u8>, last: bool) {
        let header = decode_header(&encode_data_header(&payload, last).unwrap()).unwrap();
        prop_assert_eq!(header.length as usize, payload.len());
        prop_assert_eq!(verify_data(&header, &payload).unwrap(), last);
    }

    #[test]
    fn any_flipped_bit_is_refused(message in message(), bit: prop::sample::Index) {
        let mut frame = encode_control(&message).unwrap();
        let bit = bit.index(frame.len() * 8);
        frame[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(read(&frame).is_err());
    }

    #[test]
    fn any_cut_is_refused(message in message(), cut: prop::sample::Index) {
        let frame = encode_control(&message).unwrap();
        let cut = HEADER + cut.index(frame.len() - HEADER);
        let refused = matches!(read(&frame[..cut]), Err(Error::WrongLength { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn random_bytes_never_panic(header: [u8; HEADER], payload: Vec<u8>) {
        if let Ok(header) = decode_header(&header) {
            let _ = decode_control::<Message>(&header, &payload);
            let _ = verify_data(&header, &payload);
        }
        let _ = read(&sealed(&payload));
    }
}

#[test]
fn a_message_at_the_limit_decodes_and_one_above_does_not_encode() {
    // Variant (4 bytes) and length (8 bytes) stand before the items of 12 bytes.
    let fits = Message::Blocks(vec![(1, 1); (MAX_CONTROL - 12) / 12]);
    assert_eq!(read(&encode_control(&fits).unwrap()).unwrap(), fits);
    let above = Message::Blob(vec![0; MAX_CONTROL - 11]);
    assert!(matches!(encode_control(&above), Err(Error::TooLong { .. })));
    assert!(encode_data_header(&vec![0; MAX_DATA], false).is_ok());
    assert!(matches!(encode_data_header(&vec![0; MAX_DATA + 1], false), Err(Error::TooLong { .. })));
}

#[test]
fn a_length_that_lies_inside_a_message_allocates_nothing() {
    let payload = [&2u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
    assert!(matches!(read(&sealed(&payload)), Err(Error::Decode(_))));
}

#[test]
fn every_flipped_bit_of_a_data_frame_is_refused() {
    let payload = b"sixteen bytes ..";
    for last in [false, true] {
        let good = [&encode_data_header(payload, last).unwrap()[..], payload].concat();
        for bit in 0..good.len() * 8 {
            let mut frame = good.clone();
            frame[bit / 8] ^= 1 << (bit % 8);
            let (header, payload) = split(&frame);
            let seen = decode_header(&header).and_then(|header| verify_data(&header, payload));
            assert!(seen.is_err(), "bit {bit}, last {last}");
        }
    }
}

#[test]
fn bytes_after_a_message_are_refused() {
    let mut payload = encode_control(&Message::Ready).unwrap()[HEADER..].to_vec();
    payload.extend([0, 0]);
    assert!(matches!(read(&sealed(&payload)), Err(Error::Trailing(2))));
}

#[test]
fn other_versions_name_the_host_to_upgrade() {
    let (mut header, _) = split(&encode_control(&Message::Ready).unwrap());
    header[4..6].copy_from_slice(&(VERSION + 1).to_le_bytes());
    let newer = decode_header(&header).unwrap_err().to_string();
    assert!(newer.contains("version 2") && newer.ends_with("upgrade podd on this host"), "{newer}");
    header[4..6].copy_from_slice(&(OLDEST - 1).to_le_bytes());
    let older = decode_header(&header).unwrap_err().to_string();
    assert!(older.contains("version 0") && older.ends_with("upgrade podd on the peer"), "{older}");
}

#[test]
fn strangers_kinds_and_flags_are_told_apart() {
    assert!(matches!(decode_header(b"SSH-2.0-OpenSSH_9.2p"), Err(Error::Foreign { .. })));
    let header = encode_data_header(b"x", true).unwrap();
    for (at, value) in [(6, 0), (6, 3), (7, 2), (7, 0x80)] {
        let mut header = header;
        header[at] = value;
        assert!(matches!(decode_header(&header), Err(Error::UnknownKind { .. })), "byte {at} = {value}");
    }
    let data = decode_header(&header).unwrap();
    assert!(matches!(decode_control::<Message>(&data, b"x"), Err(Error::WrongKind { .. })));
    let control = decode_header(&split(&encode_control(&Message::Ready).unwrap()).0).unwrap();
    assert!(matches!(verify_data(&control, b""), Err(Error::WrongKind { .. })));
}
