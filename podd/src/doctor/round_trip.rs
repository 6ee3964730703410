//! Does CRIU work here? Only a real dump and restore tells: the very script by which `scripts/setup` judges it.

use std::path::Path;
use std::process::{Command, Stdio};

const SCRIPT: &str = include_str!("../../../scripts/criu-roundtrip");

/// Dumps and restores a real process with a TCP connection, in namespaces of its own; about a second.
///
/// # Errors
/// What failed, in CRIU's words.
pub fn round_trip(criu: &Path, folder: &Path) -> Result<(), String> {
    let script = tempfile::Builder::new().prefix("criu-roundtrip").tempfile_in(folder).map_err(|e| e.to_string())?;
    std::fs::write(script.path(), SCRIPT).map_err(|e| e.to_string())?;
    let mut permissions = script.as_file().metadata().map_err(|e| e.to_string())?.permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o700);
    std::fs::set_permissions(script.path(), permissions).map_err(|e| e.to_string())?;
    // Closed, so that the script can be executed.
    let path = script.into_temp_path();
    let output =
        Command::new("/bin/bash").arg(&path).arg(criu).stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(text.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; "))
}
