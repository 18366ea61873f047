//! Any other pattern, through fancy-regex.

use fancy_regex::Regex;

use crate::error::{Error, Result};

/// A compiled pattern. A clone compiles again: the engine's copies share one pool of scratch space, and threads would
/// wait for each other there.
#[derive(Debug)]
pub(super) struct Custom {
    regex: Box<Regex>,
}

impl Clone for Custom {
    fn clone(&self) -> Self {
        let regex = Regex::new(self.regex.as_str()).expect("this pattern compiled before");
        Self { regex: Box::new(regex) }
    }
}

impl Custom {
    pub(super) fn new(pattern: &str) -> Result<Self> {
        let regex = Regex::new(pattern).map_err(|error| failure(pattern, &error))?;
        Ok(Self { regex: Box::new(regex) })
    }

    pub(super) fn regex(&self) -> &str {
        self.regex.as_str()
    }

    /// Calls `f` with the ends of every match and of every gap between matches, in order.
    pub(super) fn for_each_span(&self, text: &str, mut f: impl FnMut(usize, usize) -> Result<()>) -> Result<()> {
        let mut at = 0;
        for found in self.regex.find_iter(text) {
            let found = found.map_err(|error| failure(self.regex(), &error))?;
            if found.start() > at {
                f(at, found.start())?;
            }
            if found.end() > found.start() {
                f(found.start(), found.end())?;
            }
            at = found.end();
        }
        if at < text.len() { f(at, text.len()) } else { Ok(()) }
    }
}

pub(super) fn failure(pattern: &str, error: &fancy_regex::Error) -> Error {
    Error::Pattern { pattern: pattern.to_owned(), reason: error.to_string() }
}
