//! Packets that arrive for a pod while it is between two hosts: caught here, delivered there.
//!
//! A client whose packet is dropped sends it again only after 200 ms, then 400, 800 (RFC 6298, 5.5): it would be
//! silent long after the pod is back. So a tap device sits in the bridge beside the pod. Once the pod's own link is
//! unplugged, the bridge knows no port for the pod's MAC and floods what comes for it to all ports, the tap among them;
//! the kernel queues it until it is read.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, PoisonError};

use nix::libc;

use super::announce::send_frames;
use super::network;

/// Bytes of frames that are kept at most: they go over in one message.
const MOST_BYTES: usize = 2 << 20;
/// `TUNSETIFF` of linux/if_tun.h.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const IFF_TAP: libc::c_short = 0x0002;
const IFF_NO_PI: libc::c_short = 0x1000;

/// A tap in the bridge; gone when dropped.
#[derive(Debug)]
pub struct Hold {
    tap: File,
    mac: [u8; 6],
    /// Requests for new connections that [`Hold::pass`] kept back.
    kept: Mutex<Vec<Vec<u8>>>,
}

/// The part of `struct ifreq` that `TUNSETIFF` looks at, with the rest as padding.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

impl Hold {
    /// Puts a tap into the bridge for the pod with this MAC.
    ///
    /// # Errors
    /// The host has no tap devices (module `tun`), or netlink's.
    pub fn new(pod_id: &str, bridge: &str, mac: [u8; 6]) -> io::Result<Self> {
        let tap = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        let name = format!("hold{}", &pod_id[..pod_id.len().min(11)]);
        let mut request = InterfaceRequest { name: [0; libc::IFNAMSIZ], flags: IFF_TAP | IFF_NO_PI, rest: [0; 22] };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        // SAFETY: tap is an open tun device, and the request has the size and layout of struct ifreq.
        if unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF, &raw const request) } != 0 {
            return Err(io::Error::last_os_error());
        }
        network::quiet(&name)?;
        network::plug(&name, bridge)?;
        Ok(Self { tap, mac, kept: Mutex::default() })
    }

    /// What has come for the pod since the last call: frames to its MAC, and ARP requests to everyone.
    #[must_use]
    pub fn take(&self) -> Vec<Vec<u8>> {
        let mut frames = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        self.read(&mut frames);
        frames
    }

    /// Delivers what has come for a pod that is deaf and runs, but for requests for new connections, which stay here.
    ///
    /// # Errors
    /// There is no such link.
    pub fn pass(&self, outer: &str) -> io::Result<()> {
        let mut frames = Vec::new();
        self.read(&mut frames);
        let (requests, others): (Vec<_>, Vec<_>) = frames.into_iter().partition(|f| asks_for_connection(f));
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).extend(requests);
        deliver(outer, &others)
    }

    fn read(&self, frames: &mut Vec<Vec<u8>>) {
        let mut bytes: usize = frames.iter().map(Vec::len).sum();
        let mut buffer = vec![0; 65_536];
        while let Ok(n @ 14..) = (&self.tap).read(&mut buffer) {
            let frame = &buffer[..n];
            let wanted = frame[..6] == self.mac || (frame[0] == 0xff && frame[12..14] == [0x08, 0x06]);
            if wanted && bytes + n <= MOST_BYTES {
                bytes += n;
                frames.push(frame.to_vec());
            }
        }
    }
}

/// Whether an Ethernet frame has the first packet of a TCP connection (RFC 9293, 3.1): SYN without ACK.
fn asks_for_connection(frame: &[u8]) -> bool {
    const TCP: u8 = 6;
    let at = |offset: usize| frame.get(offset).copied().unwrap_or(0);
    let segment = match [at(12), at(13)] {
        [0x08, 0x00] if at(23) == TCP => 14 + usize::from(at(14) & 0x0f) * 4,
        [0x86, 0xdd] if at(20) == TCP => 14 + 40,
        _ => return false,
    };
    at(segment + 13) & 0x12 == 0x02
}

/// Delivers frames to the pod whose link has this outer end.
///
/// # Errors
/// There is no such link.
pub fn deliver(outer: &str, frames: &[Vec<u8>]) -> io::Result<()> {
    if frames.is_empty() {
        return Ok(());
    }
    // One that is too large for the link is no loss: its sender repeats it.
    match send_frames(outer, frames) {
        Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) => Ok(()),
        sent => sent,
    }
}

#[cfg(test)]
mod tests {
    use super::asks_for_connection;

    /// An Ethernet frame with a TCP segment that has these flags, behind `options` words of IPv4 options.
    fn frame(version: u8, options: usize, flags: u8) -> Vec<u8> {
        let mut frame = vec![0; 12];
        if version == 4 {
            frame.extend([0x08, 0x00, 0x45 + u8::try_from(options).expect("few"), 0, 0, 40, 0, 0, 0x40, 0, 64, 6]);
            frame.extend(vec![0; 10 + options * 4]);
        } else {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
            frame.extend([0; 32]);
        }
        frame.extend([0, 80, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        frame
    }

    #[test]
    fn only_a_syn_alone_asks_for_a_connection() {
        for (version, options) in [(4, 0), (4, 3), (6, 0)] {
            assert!(asks_for_connection(&frame(version, options, 0x02)));
            // With ECN (RFC 3168, 6.1.1).
            assert!(asks_for_connection(&frame(version, options, 0xc2)));
            for flags in [0x12, 0x10, 0x18, 0x04, 0x11] {
                assert!(!asks_for_connection(&frame(version, options, flags)), "{version} {flags:x}");
            }
        }
        let mut udp = frame(4, 0, 0x02);
        udp[23] = 17;
        assert!(!asks_for_connection(&udp));
        for length in 0..48 {
            assert!(!asks_for_connection(&frame(4, 0, 0x02)[..length.min(47)]));
        }
    }
}
