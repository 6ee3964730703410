//! Why a pod file or a pod's flags are refused.

use crate::api::{ApiError, ErrorKind};

/// What is wrong with a pod as written, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PodFileError {
    /// It is not TOML, or a key is unknown or has the wrong type.
    #[error("the pod file is wrong in line {line}: {message}")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// Something that a pod cannot do without.
    #[error("the pod has no {key}")]
    Missing {
        /// Key in the file and flag on the command line.
        key: &'static str,
        /// What to write.
        cure: &'static str,
    },
    /// A value that cannot be used.
    #[error("{key} {} {problem}", quoted(.value))]
    Invalid {
        /// Key in the file and flag on the command line.
        key: &'static str,
        /// As written.
        value: String,
        /// Predicate: `is not a size`.
        problem: &'static str,
        /// What to write instead.
        cure: &'static str,
    },
    /// Twice the same thing where one is possible.
    #[error("{key} {} is given twice", quoted(.value))]
    Duplicate {
        /// Key in the file and flag on the command line.
        key: &'static str,
        /// As written.
        value: String,
    },
}

impl PodFileError {
    /// What to write instead.
    pub fn cure(&self) -> &str {
        match self {
            Self::Syntax { .. } => "correct that line; `podctl run --help` names all keys as flags",
            Self::Missing { cure, .. } | Self::Invalid { cure, .. } => cure,
            Self::Duplicate { .. } => "leave one of them out",
        }
    }

    pub(super) fn syntax(toml: &str, error: &toml::de::Error) -> Self {
        let (line, message) = place(toml, error);
        Self::Syntax { line, message }
    }

    pub(super) fn invalid(
        key: &'static str,
        value: impl Into<String>,
        problem: &'static str,
        cure: &'static str,
    ) -> Self {
        Self::Invalid { key, value: value.into(), problem, cure }
    }
}

impl From<PodFileError> for ApiError {
    fn from(error: PodFileError) -> Self {
        Self { kind: ErrorKind::Usage, message: error.to_string(), cure: Some(error.cure().to_owned()) }
    }
}

/// Safe to print on a terminal, and short.
fn quoted(value: &str) -> String {
    const LONGEST: usize = 80;
    if value.chars().count() <= LONGEST {
        return format!("{value:?}");
    }
    let start: String = value.chars().take(LONGEST).collect();
    format!("{:?}", format!("{start}..."))
}

/// Where a file is wrong, from line 1, and what is wrong there.
pub(crate) fn place(toml: &str, error: &toml::de::Error) -> (usize, String) {
    let start = error.span().map_or(0, |span| span.start.min(toml.len()));
    let line = 1 + toml.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count();
    (line, error.message().trim().replace('\n', ", "))
}
