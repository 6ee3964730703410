//! `oci:DIR[:TAG]` and `docker-archive:FILE[:TAG]`.

use std::path::{Path, PathBuf};

use super::{Error, Result};

/// An image that exists on this host.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub kind: Kind,
    pub path: PathBuf,
    pub tag: Option<String>,
}

/// How the image is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A directory in OCI layout.
    Oci,
    /// What `docker save` writes, or an OCI layout in a tar.
    Archive,
}

impl Reference {
    /// Paths and tags may both contain colons: the longest path that exists is taken.
    pub fn parse(text: &str) -> Result<Reference> {
        let (kind, rest) = match text.split_once(':') {
            Some(("oci", rest)) => (Kind::Oci, rest),
            Some(("docker-archive" | "oci-archive", rest)) => (Kind::Archive, rest),
            _ => {
                return Err(Error::Reference { reference: text.to_owned() });
            }
        };
        if rest.is_empty() {
            return Err(Error::Reference { reference: text.to_owned() });
        }
        if !rest.starts_with('/') {
            return Err(Error::Relative { path: rest.into() });
        }
        let ends = rest.match_indices(':').map(|(at, _)| at).chain([rest.len()]);
        for end in ends.collect::<Vec<_>>().into_iter().rev() {
            let path = Path::new(&rest[..end]);
            let exists = match kind {
                Kind::Oci => path.join("index.json").exists(),
                Kind::Archive => path.is_file(),
            };
            let tag = rest.get(end + 1..).filter(|tag| !tag.is_empty()).map(str::to_owned);
            if exists {
                return Ok(Reference { kind, path: path.to_owned(), tag });
            }
        }
        let reason = match kind {
            Kind::Oci => "no directory with an index.json",
            Kind::Archive => "no such file",
        };
        Err(Error::NoImage { path: rest.to_owned(), reason })
    }
}

/// True if `name` (such as `docker.io/library/redis:7` or `7`) is what was asked for by `tag`.
pub(super) fn tag_matches(name: &str, tag: &str) -> bool {
    let short = match name.rsplit_once(':') {
        // `host:5000/redis` has a port, no tag.
        Some((_, short)) if !short.contains('/') => short,
        _ => name,
    };
    name == tag || short == tag || name.strip_suffix(tag).is_some_and(|rest| rest.ends_with('/'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn colons_in_paths_and_tags() {
        let dir = tempfile::tempdir().unwrap();
        let layout = dir.path().join("a:b");
        std::fs::create_dir(&layout).unwrap();
        std::fs::write(layout.join("index.json"), "{}").unwrap();
        let layout = layout.to_str().unwrap();
        let parse = |tag: &str| Reference::parse(&format!("oci:{layout}{tag}")).unwrap();
        assert_eq!(parse("").tag, None);
        assert_eq!(parse(":").tag, None);
        assert_eq!(parse(":7").tag.as_deref(), Some("7"));
        assert_eq!(parse(":docker.io/redis:7").tag.as_deref(), Some("docker.io/redis:7"));
        assert!(parse(":7").path.ends_with("a:b"));
    }

    #[test]
    fn what_is_no_image_is_named() {
        assert!(matches!(Reference::parse("redis:7"), Err(Error::Reference { .. })));
        assert!(matches!(Reference::parse("oci:"), Err(Error::Reference { .. })));
        assert!(matches!(Reference::parse("oci:images/redis"), Err(Error::Relative { .. })));
        assert!(matches!(Reference::parse("oci:/nowhere/at/all:7"), Err(Error::NoImage { .. })));
        assert!(matches!(Reference::parse("docker-archive:/nowhere.tar"), Err(Error::NoImage { .. })));
    }

    #[test]
    fn tags_match_as_people_write_them() {
        for (name, tag) in
            [("7", "7"), ("redis:7", "7"), ("redis:7", "redis:7"), ("docker.io/library/redis:7", "redis:7")]
        {
            assert!(tag_matches(name, tag), "{name} {tag}");
        }
        for (name, tag) in [("redis:17", "7"), ("redis:7", "is:7"), ("host:5000/redis", "5000/redis")] {
            assert!(!tag_matches(name, tag), "{name} {tag}");
        }
    }
}
