//! The command line.

use std::ffi::OsString;

/// Log bytes kept if the command line does not say.
pub const LOG_BYTES: u64 = 1024 * 1024;

/// What podd wants.
#[derive(Debug)]
pub struct Config {
    /// `USER[:GROUP[:SUPPLEMENTARY,...]]`.
    pub user: String,
    /// Working directory.
    pub cwd: OsString,
    /// Bytes kept of the log; 0: none.
    pub log_bytes: u64,
    /// Program and arguments, at least one.
    pub command: Vec<OsString>,
}

/// Reads the arguments after the program's name.
pub fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Config, String> {
    let mut config = Config { user: "0:0".into(), cwd: "/".into(), log_bytes: LOG_BYTES, command: Vec::new() };
    while let Some(name) = arguments.next() {
        if name == "--" {
            config.command = arguments.collect();
            break;
        }
        let value = arguments.next().ok_or_else(|| format!("no value for {}", name.to_string_lossy()))?;
        match name.to_str() {
            Some("--user") => config.user = text(value)?,
            Some("--cwd") => config.cwd = value,
            Some("--log-bytes") => {
                let value = text(value)?;
                config.log_bytes = value.parse().map_err(|_| format!("--log-bytes {value} is not a number"))?;
            }
            _ => return Err(format!("unknown argument {}", name.to_string_lossy())),
        }
    }
    if config.command.is_empty() {
        return Err("no command given".into());
    }
    Ok(config)
}

fn text(value: OsString) -> Result<String, String> {
    value.into_string().map_err(|value| format!("{} is not UTF-8", value.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &str) -> Result<Config, String> {
        parse(words.split(' ').map(OsString::from))
    }

    #[test]
    fn the_command_is_what_follows_the_dashes() {
        let config = parse_words("--user web --cwd /srv --log-bytes 4096 -- sh -- --user x").expect("valid");
        assert_eq!((config.user.as_str(), config.cwd.to_str(), config.log_bytes), ("web", Some("/srv"), 4096));
        assert_eq!(config.command, ["sh", "--", "--user", "x"]);
    }

    #[test]
    fn nonsense_is_refused() {
        for words in ["--user web", "--log-bytes x -- sh", "--nope 1 -- sh", "--cwd", "--"] {
            assert!(parse_words(words).is_err(), "{words}");
        }
    }
}
