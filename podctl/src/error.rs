//! Failures and exit codes. A failure is an [`ApiError`] wherever it arose: sentence, cure, kind.

use std::process::ExitCode;

use podd::api::{ApiError, ErrorKind};

use crate::output::Output;

/// Done, with this exit code; or not.
pub type Outcome = Result<u8, ApiError>;

pub const DONE: u8 = 0;
pub const FAILED: u8 = 1;
pub const USAGE: u8 = 2;
pub const REFUSED: u8 = 3;
pub const UNREACHABLE: u8 = 4;

pub fn exit_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Usage => USAGE,
        ErrorKind::NotFound | ErrorKind::Conflict | ErrorKind::Failed => FAILED,
        ErrorKind::Refused => REFUSED,
        ErrorKind::Unreachable => UNREACHABLE,
    }
}

/// The exit code of several attempts: the one that all failures share, else 1.
pub fn combined(codes: impl IntoIterator<Item = u8>) -> u8 {
    let failures = codes.into_iter().filter(|code| *code != DONE);
    failures.reduce(|a, b| if a == b { a } else { FAILED }).unwrap_or(DONE)
}

pub fn usage(message: String, cure: impl Into<String>) -> ApiError {
    ApiError { kind: ErrorKind::Usage, message, cure: Some(cure.into()) }
}

pub fn failed(message: String, cure: Option<&str>) -> ApiError {
    ApiError { kind: ErrorKind::Failed, message, cure: cure.map(str::to_owned) }
}

/// Help and version go to stdout with 0; a wrong command line becomes a sentence and a cure like any other error.
pub fn not_parsed(error: &clap::Error, out: &Output) -> ExitCode {
    if !error.use_stderr() {
        out.text(&error.render().to_string());
        return out.finish(DONE);
    }
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        out.note(error.render().to_string().trim_end());
        return out.finish(USAGE);
    }
    let (message, cure) = in_our_words(&error.render().to_string());
    out.error(&usage(message, cure));
    out.finish(USAGE)
}

/// clap's paragraphs: `error: ...`, perhaps `  tip: ...`, `Usage: ...`, `For more information ...`.
fn in_our_words(rendered: &str) -> (String, String) {
    let mut sentence = Vec::new();
    let mut cure = Vec::new();
    for line in rendered.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(tip) = line.strip_prefix("tip: ") {
            cure.push(tip.to_owned());
        } else if let Some(usage) = line.strip_prefix("Usage: ") {
            cure.push(format!("write `{usage}`"));
        } else if !line.starts_with("For more information") {
            sentence.push(line.strip_prefix("error: ").unwrap_or(line));
        }
    }
    if cure.is_empty() {
        cure.push("see `podctl --help`".to_owned());
    }
    (sentence.join(" "), cure.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_failures_share_their_code_or_become_1() {
        assert_eq!(combined([]), 0);
        assert_eq!(combined([0, 0]), 0);
        assert_eq!(combined([0, 4, 4]), 4);
        assert_eq!(combined([1, 0, 4]), 1);
        assert_eq!(combined([3, 4]), 1);
    }

    #[test]
    fn claps_errors_become_sentence_and_cure() {
        let rendered = "error: the following required arguments were not provided:\n  <NAME>\n\n\
                        Usage: podctl start <NAME>...\n\nFor more information, try '--help'.\n";
        assert_eq!(
            in_our_words(rendered),
            (
                "the following required arguments were not provided: <NAME>".to_owned(),
                "write `podctl start <NAME>...`".to_owned()
            )
        );
        let (message, cure) = in_our_words("error: x\n\n  tip: try y\n\nUsage: z\n");
        assert_eq!((message.as_str(), cure.as_str()), ("x", "try y; write `z`"));
    }
}
