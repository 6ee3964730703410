//! The kernel's clock.

use nix::libc;

/// Whether a time service keeps the wall clock (`STA_UNSYNC`, adjtimex(2)); none: the kernel does not tell.
#[must_use]
pub fn is_synchronized() -> Option<bool> {
    // SAFETY: all zeroes is a valid timex, and with `modes` 0 the call only fills it in.
    let (state, status) = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut timex), timex.status)
    };
    (state >= 0).then_some(status & libc::STA_UNSYNC == 0)
}
