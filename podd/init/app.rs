//! The child's side of the fork: becomes the application.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::args::Config;
use crate::sys;
use crate::user::User;

/// For an environment without PATH.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why there is no application; what is said on standard error gets into the pod's log.
struct Failure {
    code: i32,
    reason: String,
}

/// Replaces this process by the application, or ends it.
pub fn become_app(config: &Config, user: &User, out: &File, err: &File) -> ! {
    let Err(failure) = prepare(config, user, out, err).and_then(|()| execute(config, user));
    let _ = writeln!(io::stderr(), "podd: {}", failure.reason);
    sys::exit(failure.code)
}

fn prepare(config: &Config, user: &User, out: &File, err: &File) -> Result<(), Failure> {
    let failed = |code, what: String| move |error: io::Error| Failure { code, reason: format!("{what}: {error}") };
    for pipe in [out, err] {
        // So that the application may open /dev/stdout and /dev/stderr again. Some kernels do not let a mapped root
        // do this; then it just may not.
        let _ = std::os::unix::fs::fchown(pipe, Some(user.uid), Some(user.gid));
    }
    sys::redirect(out.as_fd(), 1).and_then(|()| sys::redirect(err.as_fd(), 2)).map_err(failed(125, "cannot set up the output".into()))?;
    sys::new_session().map_err(failed(125, "cannot start a session".into()))?;
    sys::switch_user(user.uid, user.gid, &user.groups)
        .map_err(failed(125, format!("cannot become user {} with group {}", user.uid, user.gid)))?;
    // As the user: it must be allowed to be there.
    env::set_current_dir(&config.cwd).map_err(failed(126, format!("cannot enter the working directory {}", config.cwd.to_string_lossy())))?;
    sys::restore_signals();
    Ok(())
}

fn execute(config: &Config, user: &User) -> Result<std::convert::Infallible, Failure> {
    let name = &config.command[0];
    let arguments = c_strings(config.command.iter().map(OsString::as_os_str))?;
    let environment = environment(user)?;
    let mut worst = io::Error::from(io::ErrorKind::NotFound);
    for path in candidates(name) {
        let error = sys::execute(&c_string(&path)?, &arguments, &environment);
        match error.kind() {
            // The search goes on, as execvp does; a program that was found but cannot be executed is the better reason.
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory if Path::new(&path).is_file() => {
                return Err(Failure { code: 127, reason: format!("cannot run {}: its interpreter is missing", path.to_string_lossy()) });
            }
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {}
            io::ErrorKind::PermissionDenied => worst = error,
            _ => {
                worst = error;
                break;
            }
        }
    }
    let name = name.to_string_lossy();
    Err(match worst.kind() {
        io::ErrorKind::NotFound => Failure { code: 127, reason: format!("there is no command {name} in the pod") },
        _ => Failure { code: 126, reason: format!("cannot run {name}: {worst}") },
    })
}

/// Where the command may be: as given if it has a slash, else in each directory of PATH.
fn candidates(name: &OsStr) -> Vec<OsString> {
    if name.as_bytes().contains(&b'/') || name.is_empty() {
        return vec![name.to_owned()];
    }
    let path = env::var_os("PATH").unwrap_or_else(|| PATH.into());
    env::split_paths(&path).map(|dir| dir.join(name).into_os_string()).collect()
}

fn environment(user: &User) -> Result<Vec<CString>, Failure> {
    let mut variables: Vec<OsString> = Vec::new();
    for (name, value) in env::vars_os() {
        variables.push([name.as_os_str(), OsStr::new("="), value.as_os_str()].into_iter().collect());
    }
    if env::var_os("HOME").is_none() {
        variables.push(format!("HOME={}", user.home.as_deref().unwrap_or("/")).into());
    }
    c_strings(variables.iter().map(OsString::as_os_str))
}

fn c_strings<'a>(texts: impl Iterator<Item = &'a OsStr>) -> Result<Vec<CString>, Failure> {
    texts.map(c_string).collect()
}

fn c_string(text: impl AsRef<OsStr>) -> Result<CString, Failure> {
    let text = text.as_ref();
    CString::new(text.as_bytes()).map_err(|_| Failure { code: 126, reason: format!("{} contains a zero byte", text.to_string_lossy()) })
}
