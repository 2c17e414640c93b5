//! Search for many patterns at once, fast enough in an unoptimized test build.

use std::collections::HashMap;

/// Length of the prefix by which patterns are indexed.
const PREFIX_BYTES: usize = 8;

pub struct PatternSearch {
    /// Patterns by prefix, each with the secret that it encodes.
    patterns_by_prefix: HashMap<u64, Vec<(String, String)>>,
    /// Whether the prefix of any pattern ends in these two bytes.
    prefix_endings: Vec<bool>,
}

impl Default for PatternSearch {
    fn default() -> Self {
        Self { patterns_by_prefix: HashMap::new(), prefix_endings: vec![false; 1 << 16] }
    }
}

impl PatternSearch {
    /// Adds a pattern of at least [`PREFIX_BYTES`] bytes.
    pub fn add(&mut self, pattern: String, secret: &str) {
        assert!(pattern.len() >= PREFIX_BYTES, "pattern {pattern} is too short");
        let prefix =
            pattern.as_bytes()[..PREFIX_BYTES].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        self.prefix_endings[(prefix & 0xffff) as usize] = true;
        self.patterns_by_prefix.entry(prefix).or_default().push((pattern, secret.to_owned()));
    }

    /// The first match in a text: the secret, the pattern and the line, for display.
    pub fn find(&self, text: &[u8]) -> Option<String> {
        let mut window = 0u64;
        for (index, byte) in text.iter().enumerate() {
            window = window << 8 | u64::from(*byte);
            if !self.prefix_endings[(window & 0xffff) as usize] || index + 1 < PREFIX_BYTES {
                continue;
            }
            let start = index + 1 - PREFIX_BYTES;
            let patterns = self.patterns_by_prefix.get(&window).into_iter().flatten();
            if let Some((pattern, secret)) =
                patterns.clone().find(|(pattern, _)| text[start..].starts_with(pattern.as_bytes()))
            {
                let line_start =
                    text[..start].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
                let line = text[line_start..].split(|byte| *byte == b'\n').next().unwrap_or_default();
                return Some(format!("{secret} as {pattern} in: {}", String::from_utf8_lossy(line)));
            }
        }
        None
    }
}
