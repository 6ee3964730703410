//! What fixes a vulnerability, and what that means for an installed version.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::version::{BadVersion, compare};

/// What fixes a vulnerability in the release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fix {
    /// This version and later ones are sound.
    Version(String),
    /// As debsecan says it, which knows no version of the release; the head of `debsecan.rs` has the rule.
    Listed {
        /// Sound from this version on; none: even the newest version in unstable is not.
        below: Option<String>,
        /// Older versions that are sound too, of any release.
        sound: Vec<String>,
        /// Whether the release has a sound version.
        released: bool,
    },
    /// None is known to be sound.
    NotYet,
}

impl Fix {
    /// Whether an installed version is vulnerable.
    ///
    /// # Errors
    /// [`BadVersion`]: the installed one is none.
    pub fn affects(&self, installed: &str) -> Result<bool, BadVersion> {
        let older = |than: &String| Ok(compare(installed, than)? == Ordering::Less);
        match self {
            Self::Version(version) => older(version),
            Self::NotYet => super::version::check(installed).map(|()| true),
            Self::Listed { below, sound, .. } => {
                for version in sound {
                    if compare(installed, version)? == Ordering::Equal {
                        return Ok(false);
                    }
                }
                below.as_ref().map_or_else(|| Self::NotYet.affects(installed), older)
            }
        }
    }

    /// The version to which a vulnerable host should go, if the release has one. From debsecan's list it is the oldest that is
    /// newer than the installed one: a release's versions lie between those of the release before and the one after.
    ///
    /// # Errors
    /// [`BadVersion`]: the installed one is none.
    pub fn target(&self, installed: &str) -> Result<Option<&str>, BadVersion> {
        match self {
            Self::Version(version) => Ok(Some(version)),
            Self::NotYet | Self::Listed { released: false, .. } => Ok(None),
            Self::Listed { below, sound, released: true } => {
                let mut best: Option<&str> = None;
                for version in sound.iter().chain(below) {
                    let newer = compare(version, installed)? == Ordering::Greater;
                    let nearer = best.map_or(Ok(true), |best| Ok(compare(version, best)? == Ordering::Less))?;
                    if newer && nearer {
                        best = Some(version);
                    }
                }
                Ok(best)
            }
        }
    }
}
