//! What the kernel knows of a connection (tcp(7), `TCP_INFO`).

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::libc;

/// `struct tcp_info` (linux/tcp.h) up to what is read here, which libc does not describe.
#[repr(C)]
struct Info {
    before: [u64; 22],
    /// Microseconds in which the other end took nothing more (Linux 4.10).
    rwnd_limited: u64,
}

/// How long, since it was made, nothing could be sent as the other end had no room: its program is what takes the time then, not the
/// link.
#[must_use]
pub fn waited_for_reader(connection: &impl AsFd) -> Duration {
    let mut info = Info { before: [0; 22], rwnd_limited: 0 };
    let mut length = size_of::<Info>() as libc::socklen_t;
    let fd = connection.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most as many bytes as it is told that there are, which are those of `info`.
    let got = unsafe { libc::getsockopt(fd, libc::SOL_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length) };
    if got == 0 { Duration::from_micros(info.rwnd_limited) } else { Duration::ZERO }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_reader_that_is_late_is_told_from_a_link_that_is_slow() {
        const PAUSE: Duration = Duration::from_millis(300);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut writer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut reader, _) = listener.accept().unwrap();
        // More than fits into all buffers on the way.
        let data = vec![1; 64 << 20];
        let reading = std::thread::spawn(move || {
            std::thread::sleep(PAUSE);
            let mut read = vec![0; 64 << 20];
            reader.read_exact(&mut read).unwrap();
        });
        assert_eq!(waited_for_reader(&writer), Duration::ZERO);
        writer.write_all(&data).unwrap();
        assert!(waited_for_reader(&writer) > PAUSE / 2, "{:?}", waited_for_reader(&writer));
        reading.join().unwrap();
    }
}
