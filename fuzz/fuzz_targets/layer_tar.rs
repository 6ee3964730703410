//! A layer's tar: whatever it holds, nothing outside its directory changes and no bound is passed.
//! Run it with TMPDIR on a tmpfs: every input makes and removes a directory.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use podd::layers::{Limits, unpack};

const LIMITS: Limits = Limits { max_bytes: 1 << 20, max_image_bytes: 1 << 20, max_entries: 100, max_path: 300 };

fuzz_target!(|data: &[u8]| {
    let mut tar = data.to_vec();
    mend_checksums(&mut tar);
    let lab = tempfile::tempdir().expect("a temporary directory");
    let layer = lab.path().join("layer");
    fs::create_dir(&layer).expect("a directory for the layer");
    fs::write(lab.path().join("outside"), "unharmed").expect("a file beside it");
    if let Ok(done) = unpack(&mut &tar[..], &layer, &[], &LIMITS) {
        assert!(done.bytes <= LIMITS.max_bytes && done.entries <= LIMITS.max_entries);
        // What was unpacked can be named: it is a layer.
        checkpoint::files::digest(&layer).expect("a digest");
    }
    let names = fs::read_dir(lab.path()).expect("the directory above").count();
    assert_eq!(names, 2, "something was made beside the layer");
    assert_eq!(fs::read(lab.path().join("outside")).expect("the file beside it"), b"unharmed");
});

/// A header's sum is what the fuzzer hardly ever hits: every block gets a right one.
fn mend_checksums(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(512).filter(|block| block.iter().any(|byte| *byte != 0)) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}
