//! Who asks: users of this host, by what the kernel says of the other end of the socket (unix(7), SO_PEERCRED).

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::http::request::Parts;
use axum::serve::IncomingStream;
use nix::unistd::{Uid, User};
use tokio::net::UnixListener;

/// Whoever made the request.
#[derive(Clone, Copy, Debug)]
pub struct Caller(Option<u32>);

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(stream.io().peer_cred().ok().map(|credentials| credentials.uid()))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get::<ConnectInfo<Self>>().map_or(Self(None), |ConnectInfo(caller)| *caller))
    }
}

impl Caller {
    /// The user's name; its number, if it has none.
    #[must_use]
    pub fn name(self) -> String {
        match self.0 {
            None => "unknown".to_owned(),
            Some(uid) => match User::from_uid(Uid::from_raw(uid)) {
                Ok(Some(user)) => user.name,
                _ => format!("uid {uid}"),
            },
        }
    }
}
