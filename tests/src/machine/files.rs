//! Files into and out of machines: as tar streams over the same agent that runs commands.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::room::Room;
use super::{Failure, supervisor, tools};

impl Room {
    /// Copies files or folders of this host into a folder of a machine, which is made.
    ///
    /// # Errors
    /// They are not there, or cannot be written.
    pub fn copy_in(&self, name: &str, from: &[PathBuf], to: &str) -> Result<(), Failure> {
        let mut tar = Command::new("tar");
        tar.args(["--create", "--blocking-factor=256", "--file=-"]);
        for path in from {
            let path = path.canonicalize().map_err(Failure::io("find", path))?;
            let (dir, file) = (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default());
            tar.arg("-C").arg(dir).arg(file);
        }
        let mut tar = tar.stdout(Stdio::piped()).spawn().map_err(Failure::io("run", Path::new("tar")))?;
        let input = tar.stdout.take().expect("it is piped");
        let script = "mkdir -p \"$1\" && exec tar --extract --file=- -C \"$1\"";
        let mut err = Vec::new();
        let code = self.exec_with(name, &["sh", "-c", script, "sh", to], input, io::sink(), &mut err)?;
        let sent = tar.wait().map_err(Failure::io("wait for", Path::new("tar")))?;
        if code == 0 && sent.success() {
            return Ok(());
        }
        Err(Failure::Tool { command: format!("copy to {name}:{to}"), said: String::from_utf8_lossy(&err).into_owned() })
    }

    /// Copies files or folders of a machine into a folder of this host.
    ///
    /// # Errors
    /// They are not there, or cannot be written.
    pub fn copy_out(&self, name: &str, from: &[String], to: &Path) -> Result<(), Failure> {
        fs::create_dir_all(to).map_err(Failure::io("make", to))?;
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--file=-", "-C"]).arg(to).stdin(Stdio::piped());
        let mut tar = tar.spawn().map_err(Failure::io("run", Path::new("tar")))?;
        let output = UntilFull(tar.stdin.take().expect("it is piped"));
        let script = "for path; do set -- \"$@\" -C \"$(dirname \"$path\")\" \"$(basename \"$path\")\"; shift; done
            exec tar --create --blocking-factor=256 --file=- \"$@\"";
        let mut command = vec!["sh", "-c", script, "sh"];
        command.extend(from.iter().map(String::as_str));
        let mut err = Vec::new();
        let code = self.exec_with(name, &command, io::empty(), output, &mut err)?;
        let received = tar.wait().map_err(Failure::io("wait for", Path::new("tar")))?;
        if code == 0 && received.success() {
            return Ok(());
        }
        Err(Failure::Tool { command: format!("copy from {name}"), said: String::from_utf8_lossy(&err).into_owned() })
    }

    /// Keeps a machine's logs in a folder: console, podd, supervisor; and, if it runs, CRIU's and the kernel's.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn logs(&self, name: &str, to: &Path) -> Result<(), Failure> {
        fs::create_dir_all(to).map_err(Failure::io("make", to))?;
        for file in ["console.log", "podd.log", supervisor::LOG] {
            let from = self.folder(name).join(file);
            if from.exists() {
                fs::copy(&from, to.join(file)).map_err(Failure::io("copy", &from))?;
            }
        }
        // A machine that does not answer has left what it has left.
        let script = "dmesg >/run/dmesg.log; cd / && find run/podd var/lib/podd/criu run/dmesg.log var/log/podd.log -name '*.log' 2>/dev/null |
            exec tar --create --file=- --files-from=-";
        let file = to.join("inside.tar");
        let mut out = fs::File::create(&file).map_err(Failure::io("make", &file))?;
        let _ = self.exec_with(name, &["sh", "-c", script], io::empty(), &mut out, io::sink());
        let _ = tools::run(Command::new("tar").args(["--extract", "-C"]).arg(to).arg("--file").arg(&file));
        fs::remove_file(&file).map_err(Failure::io("remove", &file))?;
        // podd's log comes over a serial line, too, so that a dead machine has one: a few lines shorter.
        let _ = fs::rename(to.join("var/log/podd.log"), to.join("podd.log"));
        Ok(())
    }
}

/// For tar, which reads no further than its end mark, though padding follows. Its exit code says whether all is well.
struct UntilFull<W>(W);

impl<W: io::Write> io::Write for UntilFull<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self.0.write(data) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(data.len()),
            other => other,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
