//! Progress on standard error: a bar on a terminal, a line a run elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use std::io::IsTerminal;
use std::time::Instant;

/// What rank 0 says while it works, one JSON line each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// What it is doing.
    pub stage: Stage,
    /// Minibatches done.
    pub done: u64,
    /// Of so many.
    pub of: u64,
}

/// The stages of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Registering the table, connecting, filling the buffer.
    Starting,
    /// Training.
    Training,
    /// Asking for the accuracy.
    Evaluating,
    /// Replaying traces.
    Replaying,
}

/// One line of progress at a time.
pub struct Progress {
    bar: Option<ProgressBar>,
    title: String,
    since: Instant,
}

impl Progress {
    /// On standard error.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix:>24} {bar:32} {pos}/{len} {msg} {elapsed}")
                .expect("the template is a constant");
            ProgressBar::new(0).with_style(style)
        });
        Self { bar, title: String::new(), since: Instant::now() }
    }

    /// A piece of work begins.
    pub fn begin(&mut self, title: impl Into<String>) {
        self.title = title.into();
        self.since = Instant::now();
        if let Some(bar) = &self.bar {
            bar.reset();
            bar.set_length(0);
            bar.set_prefix(self.title.clone());
            bar.set_message("");
            bar.tick();
        }
    }

    /// It has come so far.
    pub fn at(&self, event: Event) {
        if let Some(bar) = &self.bar {
            bar.set_length(event.of);
            bar.set_position(event.done);
            bar.set_message(match event.stage {
                Stage::Starting => "starting",
                Stage::Training => "minibatches",
                Stage::Evaluating => "evaluating",
                Stage::Replaying => "",
            });
        }
    }

    /// It is done, with this to say.
    pub fn end(&self, words: &str) {
        let line = format!("{:>24}  {words}  ({:.1} s)", self.title, self.since.elapsed().as_secs_f64());
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
