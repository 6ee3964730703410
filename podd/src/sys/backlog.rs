//! Connections that the kernel has taken on behalf of a listening program, and the program has not taken over yet. They
//! belong to no process, so CRIU cannot dump them: it refuses the pod for one that waits to be accepted
//! (`inet: In-flight connection`), and silently loses one whose handshake is under way. A unix connection that waits it
//! can carry, but not what has been written into it (`Non-empty write queue on an in-flight socket`).

use std::io;

/// Connections on their way to programs of one network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Established, and not accepted.
    pub unaccepted: u64,
    /// The same for unix sockets.
    pub unaccepted_unix: u64,
    /// The peer's last packet of the handshake has not come.
    pub half_open: u64,
}

/// Those of the network namespace of a process.
///
/// # Errors
/// The process is gone.
pub fn of(pid: i32) -> io::Result<Backlog> {
    let mut backlog = Backlog::default();
    let read = |table: &str| std::fs::read_to_string(format!("/proc/{pid}/net/{table}"));
    backlog.count(&read("tcp")?);
    match read("tcp6") {
        Ok(text) => backlog.count(&text),
        // A kernel without IPv6.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    backlog.count_unix(&read("unix")?);
    Ok(backlog)
}

/// Those of a network namespace whose processes stand still; nothing is told of handshakes. Less than 1 ms, where [`of`] takes
/// some.
///
/// # Errors
/// The process is gone.
pub fn of_frozen(pid: i32) -> io::Result<Backlog> {
    let mut backlog = Backlog { unaccepted: checkpoint::process::unaccepted(pid)?, ..Backlog::default() };
    backlog.count_unix(&std::fs::read_to_string(format!("/proc/{pid}/net/unix"))?);
    Ok(backlog)
}

impl Backlog {
    /// Adds up the table of unix sockets. A connection that nobody has accepted has no inode, and is connecting
    /// (SS_CONNECTING; net/unix/af_unix.c, unix_seq_show).
    fn count_unix(&mut self, table: &str) {
        let connecting = |line: &&str| line.split_whitespace().nth(5) == Some("02");
        self.unaccepted_unix += table.lines().skip(1).filter(connecting).count() as u64;
    }

    /// Adds up a table (Documentation/networking/proc_net_tcp.rst): state, then both queues. The receive queue of a
    /// listening socket has whole connections.
    fn count(&mut self, table: &str) {
        for line in table.lines().skip(1) {
            let mut fields = line.split_whitespace().skip(3);
            match (fields.next(), fields.next()) {
                (Some("0A"), Some(queues)) => {
                    let waiting = queues.split_once(':').and_then(|(_, r)| u64::from_str_radix(r, 16).ok());
                    self.unaccepted += waiting.unwrap_or(0);
                }
                (Some("03"), _) => self.half_open += 1,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_listeners_queue_and_handshakes_are_counted() {
        let mut backlog = Backlog::default();
        backlog.count(
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0502C40A:0050 00000000:0000 0A 00000000:00000012 00:00000000 00000000     0        0 509310 1 0 100 0 0 10 0
   1: 0502C40A:0050 6400C40A:DB5C 03 00000000:00000000 01:00000063 00000000     0        0 0 1 0
   2: 0502C40A:0050 6400C40A:DB5A 01 00000000:0000004D 00:00000000 00000000    33        0 509312 1 0 20 4 30 10 -1\n",
        );
        assert_eq!(backlog, Backlog { unaccepted: 18, unaccepted_unix: 0, half_open: 1 });
    }

    #[test]
    fn a_unix_connection_is_counted_until_it_is_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let own = || {
            let text = std::fs::read_to_string("/proc/self/net/unix").unwrap();
            let ours = text.lines().enumerate().filter(|(i, l)| *i == 0 || l.ends_with(path.to_str().unwrap()));
            let mut backlog = Backlog::default();
            backlog.count_unix(&ours.map(|(_, l)| l).collect::<Vec<_>>().join("\n"));
            backlog.unaccepted_unix
        };
        assert_eq!(own(), 0);
        let _client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert_eq!(own(), 1);
        let _accepted = listener.accept().unwrap();
        assert_eq!(own(), 0);
    }

    #[test]
    fn a_connection_is_counted_until_it_is_accepted() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let own = || {
            let text = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
            let ours =
                text.lines().enumerate().filter(|(i, l)| *i == 0 || l.contains(&format!("0100007F:{port:04X} 0")));
            let mut backlog = Backlog::default();
            backlog.count(&ours.map(|(_, l)| l).collect::<Vec<_>>().join("\n"));
            backlog.unaccepted
        };
        assert_eq!(own(), 0);
        let _client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert_eq!(own(), 1);
        let _accepted = listener.accept().unwrap();
        assert_eq!(own(), 0);
        assert!(of(std::process::id().cast_signed()).is_ok());
    }
}
