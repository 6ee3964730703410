//! A manifest from a stranger: decoding never panics, and what is accepted is safe to use and encodes to itself.
#![no_main]

use checkpoint::image::{FORMAT, Manifest, Part};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((end, bytes)) = bytes.split_first_chunk::<8>() else {
        return;
    };
    let end = u64::from_le_bytes(*end);
    let Ok(manifest) = Manifest::decode(bytes, FORMAT, end) else {
        return;
    };
    let inside = |part: &Part| part.offset >= 64 && part.offset + part.stored_size <= end;
    assert!(manifest.parts.iter().all(inside));
    let named = |part: &Part| {
        !part.name.is_empty() && !part.name.contains(['/', '\0']) && part.name != ".."
    };
    assert!(manifest.parts.iter().all(named));
    let again = manifest
        .encode(end)
        .expect("what was accepted can be written");
    assert_eq!(
        Manifest::decode(&again, FORMAT, end).expect("our own manifest"),
        manifest
    );
});
