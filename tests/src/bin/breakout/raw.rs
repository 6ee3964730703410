//! System calls that no safe crate offers, for good reason.

use std::ffi::CStr;

use nix::errno::Errno;
use nix::libc;

/// Makes a system call. Arguments that are addresses must be those of live buffers: see [`address`], [`address_mut`] and [`string`].
pub fn call<const N: usize>(number: i64, arguments: [usize; N]) -> nix::Result<i64> {
    let mut six = [0; 6];
    six[..N].copy_from_slice(&arguments);
    let [a, b, c, d, e, f] = six;
    // SAFETY: the callers pass numbers, null pointers, or addresses of buffers that live longer than the call and are as
    // large as the call expects; none of the calls keeps an address.
    Errno::result(unsafe { libc::syscall(number, a, b, c, d, e, f) })
}

/// Of a buffer that outlives the call, which only reads it.
pub fn address<T: ?Sized>(buffer: &T) -> usize {
    std::ptr::from_ref(buffer).cast::<u8>() as usize
}

/// Of a buffer that outlives the call, which may write to it.
pub fn address_mut<T: ?Sized>(buffer: &mut T) -> usize {
    std::ptr::from_mut(buffer).cast::<u8>() as usize
}

/// Of a string that outlives the call.
pub fn string(text: &CStr) -> usize {
    text.as_ptr() as usize
}

/// Makes a call that returns twice if it succeeds: a child of it ends at once.
pub fn call_that_forks<const N: usize>(number: i64, arguments: [usize; N]) -> nix::Result<i64> {
    let result = call(number, arguments);
    if result == Ok(0) {
        // SAFETY: ends the process and touches no memory.
        unsafe { libc::_exit(0) };
    }
    result
}
