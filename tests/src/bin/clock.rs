//! Tells the time to whoever asks by UDP: nanoseconds since it began, 8 bytes, little-endian. Ends when its standard
//! input does.
//!
//! ```text
//! clock IP:PORT
//! ```

use std::io;
use std::net::UdpSocket;
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let Some(address) = std::env::args().nth(1) else { return ExitCode::from(2) };
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0);
    });
    match tell(&address) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("clock: {address}: {e}");
            ExitCode::FAILURE
        }
    }
}

fn tell(address: &str) -> io::Result<()> {
    let (socket, begun) = (UdpSocket::bind(address)?, Instant::now());
    loop {
        let (_, asker) = socket.recv_from(&mut [0; 64])?;
        let now = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        socket.send_to(&now.to_le_bytes(), asker)?;
    }
}
