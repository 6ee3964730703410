//! The index of an OCI image layout, as found in a directory or archive from elsewhere.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podd::layers::check_index;

fuzz_target!(|data: &[u8]| {
    for tag in [None, Some("latest"), Some("")] {
        if let Err(error) = check_index(data, tag) {
            // Whatever the index says about itself, the sentence stays readable.
            assert!(error.to_string().len() < 10_000);
            let _ = error.cure();
        }
    }
});
