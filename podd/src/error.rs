//! How failures become the [`ApiError`] that a user reads: what was attempted, why it failed, what to do.

use std::fmt::Display;

use crate::api::{ApiError, ErrorKind};
use crate::store;

/// The daemon's result.
pub type Result<T> = std::result::Result<T, ApiError>;

impl ApiError {
    /// An error of this kind without a cure.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), cure: None }
    }

    /// It was tried and failed.
    #[must_use]
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, message)
    }

    /// The object is in the wrong state.
    #[must_use]
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }

    /// The request is wrong.
    #[must_use]
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// There is no such thing.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// The other side does not answer.
    #[must_use]
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unreachable, message)
    }

    /// Of a text that may say what to do in its last line: `  cure: ..`.
    #[must_use]
    pub fn told(kind: ErrorKind, text: &str) -> Self {
        let (message, cure) = match text.split_once("\n  cure: ") {
            Some((message, cure)) => (message, Some(cure.to_owned())),
            None => (text, None),
        };
        Self { kind, message: message.replace('\n', " "), cure }
    }

    /// Adds what to do.
    #[must_use]
    pub fn cure(mut self, cure: impl Into<String>) -> Self {
        self.cure = Some(cure.into());
        self
    }
}

impl From<store::Error> for ApiError {
    fn from(e: store::Error) -> Self {
        match e {
            store::Error::NameTaken(_) => {
                Self::conflict(e.to_string()).cure("choose another name, or remove that pod with `podctl rm`")
            }
            store::Error::Engine(_) | store::Error::Record(_) => {
                Self::failed(e.to_string()).cure("check the disk that holds podd's state folder")
            }
        }
    }
}

/// Says what was attempted when something failed.
pub trait Attempt<T> {
    /// Turns any error into "cannot WHAT: why".
    ///
    /// # Errors
    /// The error, told.
    fn attempt(self, what: impl Display) -> Result<T>;
}

impl<T, E: Display> Attempt<T> for std::result::Result<T, E> {
    fn attempt(self, what: impl Display) -> Result<T> {
        self.map_err(|e| ApiError::failed(format!("cannot {what}: {e}")))
    }
}
