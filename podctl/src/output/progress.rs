//! A live line for requests that take a while.

use std::cell::RefCell;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use podd::api::{Progress, Times};

use super::words;

/// One line on stderr, gone when dropped.
pub struct ProgressLine {
    what: RefCell<String>,
    bar: ProgressBar,
}

impl ProgressLine {
    pub(super) fn new(what: &str, hidden: bool) -> Self {
        // indicatif's own stderr target draws on terminals only.
        let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(style("{spinner} {msg}"));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { what: RefCell::new(what.to_owned()), bar }
    }

    /// Words in place of a phase.
    pub fn say(&self, text: &str) {
        self.bar.set_message(format!("{}: {text}", self.what.borrow()));
    }

    pub fn update(&self, progress: &Progress) {
        if let Some(Times { blackout_ms, total_ms }) = progress.expected {
            let expected =
                format!(" ({} ms of blackout expected, {:.1} s in all)", words::ms(blackout_ms), total_ms / 1000.0);
            self.what.borrow_mut().push_str(&expected);
        }
        self.bar.set_message(message(&self.what.borrow(), progress));
        if progress.total == 0 {
            self.bar.set_style(style("{spinner} {msg}"));
            return;
        }
        self.bar.set_length(progress.total);
        self.bar.set_position(progress.done);
        self.bar.set_style(style("{spinner} {msg} [{bar:24}]"));
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn message(what: &str, progress: &Progress) -> String {
    let phase = super::printable(&progress.phase);
    match (progress.done, progress.total) {
        (0, 0) => format!("{what}: {phase}"),
        (done, 0) => format!("{what}: {phase} {}", words::bytes(done)),
        (done, total) => format!("{what}: {phase} {} of {}", words::bytes(done), words::bytes(total)),
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_phase_and_bytes() {
        let said = |done, total| message("web", &Progress { phase: "memory".to_owned(), done, total, expected: None });
        assert_eq!(said(0, 0), "web: memory");
        assert_eq!(said(12_000_000, 0), "web: memory 12 MB");
        assert_eq!(said(12_000_000, 268_435_456), "web: memory 12 MB of 268 MB");
    }
}
