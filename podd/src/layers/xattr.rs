//! Which extended attributes belong to a layer.

/// True for attributes that mean something inside a pod: the user's own, file capabilities, access lists.
///
/// Others are dropped: `trusted.*` cannot be seen inside a user namespace, and overlayfs would obey
/// `trusted.overlay.redirect` and `user.overlay.*` from an image; `security.selinux` and `security.ima` speak of
/// the policy of the host where the image was made.
pub(super) fn travels(name: &[u8]) -> bool {
    match name {
        b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default" => true,
        _ => name.starts_with(b"user.") && !name.starts_with(b"user.overlay."),
    }
}
