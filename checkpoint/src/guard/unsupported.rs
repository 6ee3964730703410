//! Where the registers are not those of x86-64: nothing is saved, so nothing is guarded.

use std::collections::HashSet;
use std::io;
use std::marker::PhantomData;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::Options;
use nix::unistd::Pid;

pub(super) fn options() -> Options {
    Options::empty()
}

#[derive(Debug)]
pub(super) enum Process {}

impl Process {
    pub(super) fn save(_: Pid, _: &HashSet<Pid>) -> Option<Self> {
        None
    }

    pub(super) fn injury(&self, _: &HashSet<Pid>) -> Option<Injury<'_>> {
        None
    }
}

pub(super) struct Injury<'a>(PhantomData<&'a Process>);

impl Injury<'_> {
    pub(super) fn mend(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Nobody can be borrowed either.
pub(super) enum Thread {}

impl Thread {
    pub(super) fn save(_: Pid) -> nix::Result<Self> {
        Err(Errno::ENOSYS)
    }

    pub(super) fn is_native(&self) -> bool {
        match *self {}
    }

    pub(super) fn go_on(&self) -> io::Result<()> {
        match *self {}
    }

    pub(super) fn call(&self, _: u64, _: libc::c_long, _: [u64; 2], _: u64) -> io::Result<i64> {
        match *self {}
    }
}
