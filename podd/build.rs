//! Builds the pod's init (`init/`) as a static program, which `pod::init` embeds.
//!
//! It is compiled by calling rustc rather than as a cargo target: cargo would apply `+crt-static` to the whole
//! workspace, and proc macros cannot be built that way.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=init");
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");

    // Of the program's relocations, a million bytes that are read at each start.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");

    let var = |name: &str| env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name} for build scripts"));
    let output = PathBuf::from(var("OUT_DIR")).join("podd-init");
    let source = PathBuf::from(var("CARGO_MANIFEST_DIR"));
    let mut rustc = Command::new(var("RUSTC"));
    rustc
        .current_dir(&source)
        .args(["--crate-name", "init", "--crate-type", "bin", "--edition", "2024", "--target"])
        .arg(var("TARGET"))
        .args(["-C", "target-feature=+crt-static", "-C", "opt-level=s", "-C", "panic=abort"])
        .args(["-C", "strip=symbols", "-C", "codegen-units=1", "-C", "lto=fat"])
        // Position-independent, it would dirty a few more pages in each pod for its relocations.
        .args(["-C", "relocation-model=static"])
        .arg("-o")
        .arg(&output)
        .arg("init/main.rs");
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        rustc.arg("-C").arg(format!("linker={}", linker.to_string_lossy()));
    }
    match rustc.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("rustc could not build the pod's init (static libc missing? install libc6-dev): {status}"),
        Err(error) => panic!("cannot run rustc to build the pod's init: {error}"),
    }
}
