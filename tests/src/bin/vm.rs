//! Emulated machines with kernels of their own; started by `scripts/vm`.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use tests::machine::room::Ready;
use tests::machine::{Failure, Room, base, boot, kernels, matrix};

/// Machines with stock Debian kernels of their own, emulated, on a private LAN without uplink.
///
/// Each has podd inside, on 10.78.0.N:7443, and belongs to the lab's fleet. State: $PODD_VM (default /var/tmp/podd-vm);
/// several labs run side by side. Kernels and disk images are cached in ~/.cache/podd/vm.
#[derive(Debug, Parser)]
#[command(name = "vm", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a machine with the newest kernel of a series (6.1, 7.x ...) and start it; returns when podd answers
    Up {
        name: String,
        kernel: String,
        /// QEMU's CPU model
        #[arg(long, default_value = "max")]
        cpu: String,
        /// MiB
        #[arg(long, default_value_t = 1024)]
        memory: u32,
    },
    /// Remove a machine, or every trace of the lab
    Down { name: Option<String> },
    /// Run a command in a machine; its exit code is passed on (255: the machine does not answer)
    Exec {
        name: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Copy into a folder: FILE... NAME:FOLDER, or NAME:FILE... FOLDER
    Copy {
        #[arg(required = true, num_args = 2..)]
        paths: Vec<String>,
    },
    /// Reboot a machine; with --kernel, after installing that kernel's packages in it
    Reboot {
        name: String,
        #[arg(long)]
        kernel: Option<String>,
    },
    /// Kill a machine without a sync; it stays off until `vm start`
    Powercut { name: String },
    /// Start a machine that is off, with its disks as they are
    Start { name: String },
    /// Unplug a machine from the LAN; exec still reaches it
    Cut { name: String },
    /// Plug it in again
    Join { name: String },
    /// What runs
    Status,
    /// Which kernels this machine's mirrors offer
    Kernels,
    /// Print a machine's console so far
    Console { name: String },
    /// Keep a machine's logs (console, podd, CRIU, kernel) in a folder
    Logs { name: String, folder: PathBuf },
    /// Run a command of this host on the LAN, as 10.78.0.254
    Client {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Fetch kernels (all series, if none is named) and make the disk images
    Prepare { kernels: Vec<String> },
    /// Move pods under load between every two kernels; writes KERNELS.md and KERNELS.json
    Matrix {
        /// Such as 6.1,6.12,7.x; five of them, if none is named
        #[arg(long, value_delimiter = ',')]
        series: Vec<String>,
        /// Such as redis,nginx; all, if none is named
        #[arg(long, value_delimiter = ',')]
        pods: Vec<String>,
        /// The JSON file; the one for people lies beside it
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Leave out what is in the file already and is as preflight said; only what was run since this date, if one is given
        #[arg(long, value_name = "YYYY-MM-DD", num_args = 0..=1, default_missing_value = "", value_parser = day)]
        resume: Option<String>,
    },
    #[command(hide = true)]
    Supervise { dir: PathBuf, name: String },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.verb) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("vm: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// A day as results have it; empty: any.
fn day(text: &str) -> Result<String, String> {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    if matches!(shape.as_str(), "" | "0000-00-00") {
        Ok(text.to_owned())
    } else {
        Err("write it as 2026-11-30".to_owned())
    }
}

fn run(verb: Verb) -> Result<u8, Failure> {
    if let Verb::Matrix { series, pods, out, resume } = verb {
        let out = out.unwrap_or_else(matrix::default_out);
        let options = matrix::Options { series, pods, out, resume, logs: matrix::default_logs() };
        return Ok(u8::from(!matrix::run(&options)?));
    }
    let dir = std::env::var_os("PODD_VM").map_or_else(|| "/var/tmp/podd-vm".into(), PathBuf::from);
    let room = Room::open(&dir)?;
    match verb {
        Verb::Up { name, kernel, cpu, memory } => report(&name, &room.up(&name, &kernel, &cpu, memory)?, &room),
        Verb::Start { name } => report(&name, &room.start(&name)?, &room),
        Verb::Reboot { name, kernel } => report(&name, &room.reboot(&name, kernel.as_deref())?, &room),
        Verb::Powercut { name } => room.powercut(&name)?,
        Verb::Cut { name } => room.link(&name, false)?,
        Verb::Join { name } => room.link(&name, true)?,
        Verb::Exec { name, command } => return Ok(exec(&room, &name, &command)),
        Verb::Copy { paths } => copy(&room, &paths)?,
        Verb::Status => status(&room),
        Verb::Kernels => offered(&room)?,
        Verb::Prepare { kernels } => prepare(&room, kernels)?,
        Verb::Logs { name, folder } => room.machine(&name).and_then(|_| room.logs(&name, &folder))?,
        Verb::Console { name } => {
            room.machine(&name)?;
            let path = room.folder(&name).join("console.log");
            let console = fs::read(&path).map_err(Failure::io("read", &path))?;
            io::stdout().write_all(&console).map_err(Failure::io("write to", Path::new("standard output")))?;
        }
        Verb::Client { command } => {
            let mut client = room.lan()?.command(&command[0]);
            return Err(Failure::io("run", Path::new("nsenter"))(client.args(&command[1..]).exec()));
        }
        // It has labs of its own.
        Verb::Matrix { .. } => {}
        Verb::Supervise { dir, name } => Room::open(&dir)?.supervise(&name),
        Verb::Down { name } => {
            room.down(name.as_deref())?;
            println!("vm: {} is down", name.unwrap_or_else(|| dir.display().to_string()));
        }
    }
    Ok(0)
}

fn report(name: &str, ready: &Ready, room: &Room) {
    let number = room.machine(name).map_or(0, |machine| machine.number);
    let seconds = ready.took.as_secs_f64();
    println!("vm: {name} runs {} at 10.78.0.{number}; podd answered after {seconds:.1} s", ready.kernel);
}

fn exec(room: &Room, name: &str, command: &[String]) -> u8 {
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    match room.exec_with(name, &command, Input, io::stdout(), io::stderr()) {
        Ok(code) => u8::try_from(code).unwrap_or(255),
        // As ssh: 1 would be the command's own.
        Err(failure) => {
            eprintln!("vm: {failure}");
            255
        }
    }
}

/// Standard input, for a thread: its lock cannot be sent to one.
struct Input;

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        io::stdin().lock().read(buffer)
    }
}

fn copy(room: &Room, paths: &[String]) -> Result<(), Failure> {
    let refused =
        || Failure::Refused("copy wants FILE... NAME:FOLDER, or NAME:FILE... FOLDER with one NAME".to_owned());
    // A path of this host with a colon is written as ./a:b
    let machine = |path: &str| {
        path.split_once(':').filter(|(name, _)| !name.contains('/')).map(|(n, p)| (n.to_owned(), p.to_owned()))
    };
    let (to, from) = paths.split_last().ok_or_else(refused)?;
    let remote: Vec<_> = from.iter().filter_map(|path| machine(path)).collect();
    match (machine(to), remote.split_first()) {
        (Some((name, folder)), None) => {
            let from: Vec<PathBuf> = from.iter().map(PathBuf::from).collect();
            room.copy_in(&name, &from, &folder)
        }
        (None, Some(((name, _), rest)))
            if remote.len() == from.len() && rest.iter().all(|(other, _)| other == name) =>
        {
            let from: Vec<String> = remote.iter().map(|(_, path)| path.clone()).collect();
            room.copy_out(name, &from, Path::new(to))
        }
        _ => Err(refused()),
    }
}

fn status(room: &Room) {
    for machine in room.machines() {
        let name = &machine.name;
        let address = format!("10.78.0.{}", machine.number);
        let state = if room.runs(name) {
            let kernel =
                room.must(name, &["uname", "-r"]).map_or_else(|_| "no answer yet".to_owned(), |k| k.trim().to_owned());
            format!("runs {kernel}, {} MiB of memory", room.resident(name))
        } else {
            "off".to_owned()
        };
        println!("{name}: {address}, made with {}, {state}", machine.kernel);
    }
}

fn offered(room: &Room) -> Result<(), Failure> {
    let catalog = kernels::catalog(room.cache())?;
    println!("{:<8} {:<24} {:<20} PACKAGE", "SERIES", "VERSION", "SUITE");
    for (series, package) in catalog.newest() {
        println!("{series:<8} {:<24} {:<20} {}", package.version, package.suite, package.name);
    }
    for (series, package) in catalog.incomplete() {
        println!(
            "{series:<8} {:<24} {:<20} not whole any more: {} has gone",
            package.version,
            package.suite,
            package.missing.join(", ")
        );
    }
    for (suite, why) in &catalog.absent {
        eprintln!("vm: {suite} is not to be had: {why}");
    }
    Ok(())
}

fn prepare(room: &Room, mut series: Vec<String>) -> Result<(), Failure> {
    let begun = Instant::now();
    let said = |what: &str| println!("{:8.1} s  {what}", begun.elapsed().as_secs_f64());
    if series.is_empty() {
        series = kernels::catalog(room.cache())?.newest().into_iter().map(|(series, _)| series).collect();
    }
    said(&format!("kernels wanted: {}", series.join(" ")));
    let mut fetched = Vec::new();
    for series in &series {
        let kernel = kernels::fetch(room.cache(), series)?;
        said(&format!("{series} is {} of {}", kernel.package.version, kernel.package.suite));
        fetched.push(kernel);
    }
    let tree = base::tree(room.cache())?;
    said("minimal Debian");
    base::image(room.cache(), &tree)?;
    said("base image");
    for kernel in &fetched {
        boot::template(room.cache(), &tree, kernel)?;
        said(&format!("disk with {}", kernel.package.name));
    }
    Ok(())
}
