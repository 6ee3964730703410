//! Processors that do not go to sleep while a pod stands still.
//!
//! CRIU and the processes that it works in take turns, thousands of times in a dump and in a restore, and whoever has handed over
//! idles. A processor that fell asleep takes some 50 µs to wake up in a virtual machine, and as long from a deep sleep (C6) on
//! hardware: a third of a small pod's blackout. The kernel lets whoever holds this device open say how long a processor may take
//! (Documentation/power/pm_qos_interface.rst).

use std::fs::File;
use std::io::{self, Write};

const DEVICE: &str = "/dev/cpu_dma_latency";
/// Wait for work awake, and do not sleep at all, in µs.
const LATENCY: i32 = 0;

/// No processor of this host sleeps until this is dropped, or whoever has it dies.
#[derive(Debug)]
pub(crate) struct Awake {
    _held: Option<File>,
}

impl Awake {
    /// Where the kernel has no such device, they sleep as they like.
    #[must_use]
    pub(crate) fn keep() -> Self {
        let ask = || -> io::Result<File> {
            let mut device = File::options().write(true).open(DEVICE)?;
            device.write_all(&LATENCY.to_ne_bytes())?;
            Ok(device)
        };
        Self { _held: ask().inspect_err(|error| tracing::debug!(%error, DEVICE, "processors may sleep")).ok() }
    }
}
