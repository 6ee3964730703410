//! Which capabilities the processes of a pod may ever have.
//!
//! They count in the pod's own user namespace only, so none of them reaches the host; the list is short all the same,
//! as each one opens more of the kernel to the pod.

use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::libc;

/// Kept in every pod: what servers need to switch users, own files and bind low ports. Not MKNOD (no devices in a
/// user namespace), NET_RAW (spoofing on the pod network) or AUDIT_WRITE, unless asked for.
pub const DEFAULT: [Capability; 11] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SETPCAP,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_SETFCAP,
];

/// Why capabilities could not be understood or given up.
#[derive(Debug, thiserror::Error)]
pub enum CapabilityError {
    /// No such capability.
    #[error("there is no capability {name:?}; the valid ones are {}", valid())]
    Unknown {
        /// As given.
        name: String,
    },
    /// A change that the kernel refused.
    #[error("cannot change the {set} capability set")]
    Set {
        /// Which set.
        set: &'static str,
        /// The kernel's reason.
        #[source]
        source: caps::errors::CapsError,
    },
    /// One that could not be dropped for good.
    #[error("cannot drop capability number {number} from the bounding set")]
    Bounding {
        /// The kernel's number.
        number: u8,
        /// The kernel's reason.
        #[source]
        source: Errno,
    },
}

/// What a pod keeps: [`DEFAULT`] and what it asks for (see [`parse`]).
pub fn kept(added: &[String]) -> Result<CapsHashSet, CapabilityError> {
    let mut set = parse(added)?;
    set.extend(DEFAULT);
    Ok(set)
}

/// Understands names with or without `CAP_`, in any case: `net_raw`, `CAP_NET_RAW`.
pub fn parse(names: &[String]) -> Result<CapsHashSet, CapabilityError> {
    names
        .iter()
        .map(|name| {
            let upper = name.trim().to_ascii_uppercase();
            let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
            full.parse().map_err(|_| CapabilityError::Unknown { name: name.clone() })
        })
        .collect()
}

/// Gives up everything but `kept` in the current thread, for good: what it executes cannot gain more, not even by
/// set-uid or file capabilities. Needs SETPCAP; asks for no capability that the thread does not have.
pub fn drop_to(kept: &CapsHashSet) -> Result<(), CapabilityError> {
    let failed = |set| move |source| CapabilityError::Set { set, source };
    caps::clear(None, CapSet::Ambient).map_err(failed("ambient"))?;
    drop_from_bounding_set(kept)?;
    caps::clear(None, CapSet::Inheritable).map_err(failed("inheritable"))?;
    // Permitted last: it may not shrink below the effective set.
    caps::set(None, CapSet::Effective, kept).map_err(failed("effective"))?;
    caps::set(None, CapSet::Permitted, kept).map_err(failed("permitted"))
}

/// By number, so that capabilities of kernels newer than the caps crate go too.
fn drop_from_bounding_set(kept: &CapsHashSet) -> Result<(), CapabilityError> {
    for number in 0..64u8 {
        if kept.iter().any(|capability| capability.index() == number) {
            continue;
        }
        // SAFETY: both calls take numbers and touch no memory.
        let result = unsafe {
            match libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(number), 0, 0, 0) {
                1 => libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0),
                // Not there, or not known to this kernel.
                _ => 0,
            }
        };
        Errno::result(result).map_err(|source| CapabilityError::Bounding { number, source })?;
    }
    Ok(())
}

fn valid() -> String {
    let mut names: Vec<String> = caps::all().iter().map(ToString::to_string).collect();
    names.sort();
    names.join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::process::Command;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_in_any_form() {
        let set = parse(&names(&["net_raw", "CAP_NET_RAW", "Cap_Sys_Time"])).unwrap();
        assert_eq!(set, [Capability::CAP_NET_RAW, Capability::CAP_SYS_TIME].into());
        assert_eq!(kept(&names(&["MKNOD", "chown"])).unwrap().len(), DEFAULT.len() + 1);
    }

    #[test]
    fn an_unknown_name_lists_the_valid_ones() {
        for name in ["NET-RAW", "", "CAP_", "ALL", "__NONEXHAUSTIVE"] {
            let message = parse(&names(&[name])).unwrap_err().to_string();
            assert!(message.contains(&format!("{name:?}")) && message.contains("CAP_NET_RAW"), "{message}");
        }
    }

    /// The sets of a thread that gave up its capabilities, and of a program that it executes as root.
    #[test]
    fn dropping_is_for_good() {
        let status = std::thread::spawn(|| {
            drop_to(&DEFAULT.into()).unwrap();
            for set in [CapSet::Effective, CapSet::Permitted, CapSet::Bounding] {
                assert_eq!(caps::read(None, set).unwrap(), DEFAULT.into(), "{set:?}");
            }
            assert!(caps::set(None, CapSet::Permitted, &[Capability::CAP_SYS_ADMIN].into()).is_err());
            Command::new("cat").arg("/proc/self/status").output().unwrap().stdout
        })
        .join()
        .unwrap();
        let mask = DEFAULT.iter().fold(0, |mask, capability| mask | capability.bitmask());
        let status = String::from_utf8(status).unwrap();
        for (set, mask) in [("CapPrm", mask), ("CapEff", mask), ("CapBnd", mask), ("CapInh", 0), ("CapAmb", 0)] {
            assert!(status.contains(&format!("{set}:\t{mask:016x}\n")), "{set} {mask:016x} {status}");
        }
    }
}
