//! A peer's bytes: whatever header and payload come, nothing panics, and what decodes encodes to itself.
#![no_main]

use std::collections::BTreeMap;

use checkpoint::compat::Finding;
use checkpoint::wire::{self, HEADER};
use libfuzzer_sys::fuzz_target;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// One of each shape that messages have: maps, lists, options, enums, numbers, bytes.
type Message = (
    BTreeMap<String, u64>,
    Vec<Finding>,
    Option<Vec<u8>>,
    (u16, i32, bool, u128),
);

fuzz_target!(|bytes: &[u8]| {
    let Some((header, payload)) = bytes.split_first_chunk::<HEADER>() else {
        return;
    };
    if let Ok(header) = wire::decode_header(header) {
        let _ = wire::verify_data(&header, payload);
        let _ = wire::decode_control::<Message>(&header, payload);
    }
    // The same payload under headers that fit, for the fuzzer cannot guess checksums.
    let data = wire::encode_data_header(payload, true).expect("the fuzzer's inputs are small");
    assert!(
        wire::verify_data(
            &wire::decode_header(&data).expect("our own header"),
            payload
        )
        .expect("our own data")
    );
    let header = wire::decode_header(&control_header(data, payload)).expect("a header that fits");
    if let Ok(message) = wire::decode_control::<Message>(&header, payload) {
        let frame = wire::encode_control(&message).expect("what was decoded is within the limits");
        let (head, body) = frame
            .split_first_chunk::<HEADER>()
            .expect("a frame has a header");
        let header = wire::decode_header(head).expect("our own header");
        assert_eq!(
            wire::decode_control::<Message>(&header, body).expect("our own message"),
            message
        );
    }
});

/// Makes a data header one of a control frame.
fn control_header(mut header: [u8; HEADER], payload: &[u8]) -> [u8; HEADER] {
    [header[6], header[7]] = [1, 0];
    let fields = u64::from_le_bytes(header[4..12].try_into().expect("8 bytes"));
    header[12..].copy_from_slice(&xxh3_64_with_seed(payload, fields).to_le_bytes());
    header
}
