//! A pod file as a person, or a program that means harm, wrote it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podd::pod::file::{PodFile, validated};

fuzz_target!(|text: &str| {
    let Ok(file) = PodFile::parse(text) else { return };
    let Ok(spec) = file.into_spec([7; 6]) else { return };
    // What was accepted once is in its final form.
    let again = validated(&spec).expect("an accepted pod is accepted again");
    assert_eq!(again, spec);
});
