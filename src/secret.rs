//! Text that must never be shown: secrets, keys and tokens, masked in every printed form and wiped when dropped.

use std::fmt;

use zeroize::Zeroize;

/// A secret, key or token. `Debug` prints a mask, `Display` does not exist; [`Masked::expose`] is the only way to the
/// text, and is meant to be searched for in reviews.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Masked(Box<str>);

impl Masked {
    /// Wraps `text`, which is not looked at.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The text itself. Whoever calls this answers for where it goes.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Masked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[masked]")
    }
}

impl Drop for Masked {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_text_shows_nothing_of_it() {
        let masked = Masked::new("s3cret-of-hr");
        assert_eq!(format!("{masked:?}"), "[masked]");
        assert!(!format!("{:#?}", Some(&masked)).contains("s3cret"));
        assert_eq!(masked.expose(), "s3cret-of-hr");
    }
}
