//! Frames on an upgraded exec connection (see [`crate::api::exec_stream`]), for both sides.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::api::exec_stream::MAX;

/// Value of the `Upgrade` header.
pub const PROTOCOL: &str = "podd-exec";

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// One of the constants of [`crate::api::exec_stream`].
    pub kind: u8,
    /// At most [`MAX`] bytes.
    pub payload: Vec<u8>,
}

/// Reads a frame; none if the peer closed between two frames. Not cancel safe: a dropped read loses bytes.
pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut head = [0; 5];
    if from.read(&mut head[..1]).await? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut head[1..]).await?;
    let [kind, length @ ..] = head;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
    }
    let mut payload = vec![0; length];
    from.read_exact(&mut payload).await?;
    Ok(Some(Frame { kind, payload }))
}

/// Writes and flushes a frame. An `InvalidInput` error if the payload is larger than [`MAX`].
pub async fn write(to: &mut (impl AsyncWrite + Unpin), kind: u8, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= MAX);
    let length = length.ok_or(io::ErrorKind::InvalidInput)?;
    // One buffer, so that a small frame is one packet.
    let mut bytes = Vec::with_capacity(5 + payload.len());
    bytes.push(kind);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(payload);
    to.write_all(&bytes).await?;
    to.flush().await
}
