//! Many texts searched for at once. Fast enough without an optimizer, which no library built for tests has.

use std::collections::HashMap;

/// So many bytes of a text decide whether the rest is looked at.
const PREFIX_BYTES: usize = 8;

pub struct PatternSearch {
    /// By the first bytes: the texts, and what each is a guise of.
    patterns_by_prefix: HashMap<u64, Vec<(String, String)>>,
    /// Whether any text's beginning ends in these two bytes.
    prefix_endings: Vec<bool>,
}

impl Default for PatternSearch {
    fn default() -> Self {
        Self { patterns_by_prefix: HashMap::new(), prefix_endings: vec![false; 1 << 16] }
    }
}

impl PatternSearch {
    /// From now on this text is looked for, which has at least [`BEGINNING`] bytes.
    pub fn add(&mut self, guise: String, secret: &str) {
        assert!(guise.len() >= PREFIX_BYTES, "{guise} is too short to be looked for");
        let beginning =
            guise.as_bytes()[..PREFIX_BYTES].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        self.prefix_endings[(beginning & 0xffff) as usize] = true;
        self.patterns_by_prefix.entry(beginning).or_default().push((guise, secret.to_owned()));
    }

    /// The first of them that a text holds, in words, with the line in which it stands.
    pub fn find(&self, text: &[u8]) -> Option<String> {
        let mut last = 0u64;
        for (at, byte) in text.iter().enumerate() {
            last = last << 8 | u64::from(*byte);
            if !self.prefix_endings[(last & 0xffff) as usize] || at + 1 < PREFIX_BYTES {
                continue;
            }
            let start = at + 1 - PREFIX_BYTES;
            let guises = self.patterns_by_prefix.get(&last).into_iter().flatten();
            if let Some((guise, secret)) =
                guises.clone().find(|(guise, _)| text[start..].starts_with(guise.as_bytes()))
            {
                let line_start =
                    text[..start].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
                let line = text[line_start..].split(|byte| *byte == b'\n').next().unwrap_or_default();
                return Some(format!("{secret} as {guise} in: {}", String::from_utf8_lossy(line)));
            }
        }
        None
    }
}
