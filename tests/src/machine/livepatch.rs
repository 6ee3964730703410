//! A live patch for a kernel of the machines, built here, with a manifest that somebody has signed.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::archive::Published;
use super::cache::Cache;
use super::{Failure, Lab, kernels, tools};

const SOURCE: &str = include_str!("../../machine/livepatch.c");
const MAKE: &str = include_str!("../../machine/make-livepatch");
/// Its name below /sys/kernel/livepatch.
pub const NAME: &str = "vm_patched";

/// Brings a machine the module, a manifest that says that it ends this advisory, and the key to be trusted: /root/vendor.pem.
///
/// # Errors
/// The headers cannot be fetched, or it cannot be built.
pub fn deliver(lab: &Lab, machine: &str, kernel: &Published, advisory: &str) -> Result<(), Failure> {
    let scratch = tempfile::tempdir().map_err(Failure::io("make", Path::new("a folder")))?;
    let dir = scratch.path();
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).map_err(Failure::io("write", &path))
    };
    write(&format!("{NAME}.c"), SOURCE)?;
    let headers = kernels::fetch_headers(&Cache::open()?, &kernel.kernel)?;
    let mut make = Command::new("unshare");
    make.args(["--mount", "--propagation", "private", "sh", "-c", MAKE, "make-livepatch"]).arg(dir);
    tools::run(make.arg(&kernel.release).args(headers))?;

    let module = format!("/usr/lib/podd/{NAME}.ko");
    let manifest = json!({"patch": NAME, "kernels": [&kernel.version], "advisories": [advisory], "module": module});
    write("fix.json", &manifest.to_string())?;
    let sign = "openssl genpkey -algorithm ed25519 -out key.pem
        openssl pkey -in key.pem -pubout -out vendor.pem
        openssl pkeyutl -sign -rawin -inkey key.pem -in fix.json -out fix.json.sig";
    tools::run(Command::new("sh").args(["-ec", sign]).current_dir(dir))?;
    let room = lab.room();
    room.copy_in(machine, &[dir.join(format!("{NAME}.ko"))], "/usr/lib/podd")?;
    room.copy_in(machine, &[dir.join("fix.json"), dir.join("fix.json.sig")], "/etc/podd/livepatch")?;
    room.copy_in(machine, &[dir.join("vendor.pem")], "/root")
}
