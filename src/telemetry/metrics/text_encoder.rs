//! The Prometheus text format.

use std::fmt::{Display, Write};

/// Writes metric families as text.
#[derive(Debug, Default)]
pub struct TextEncoder(String);

impl TextEncoder {
    /// Begins a family, to which the following samples belong. `kind` is `counter`, `gauge` or `histogram`.
    pub fn begin_family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// Writes a sample.
    pub fn write_sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (nth, (label, text)) in labels.iter().enumerate() {
            self.0.push(if nth == 0 { '{' } else { ',' });
            self.0.push_str(label);
            self.0.push_str("=\"");
            self.write_escaped(text);
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// Writes a family with these samples: the labels and the value of each.
    pub fn write_family<L: AsRef<str>, const N: usize>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([(&'static str, L); N], impl Display)>,
    ) {
        self.begin_family(name, kind, help);
        for (labels, value) in samples {
            let labels = labels.each_ref().map(|(label, text)| (*label, text.as_ref()));
            self.write_sample(name, &labels, value);
        }
    }

    /// Writes a family of one sample without labels.
    pub fn write_single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.begin_family(name, kind, help);
        self.write_sample(name, &[], value);
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the text is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text.
    pub fn into_string(self) -> String {
        self.0
    }

    fn write_escaped(&mut self, text: &str) {
        for char in text.chars() {
            match char {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                char => self.0.push(char),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_escaped() {
        let mut text = TextEncoder::default();
        text.write_single("a", "gauge", "An a.", 1.5);
        text.write_sample("b_total", &[("x", "1\"2\\3\n4"), ("y", "")], 7);
        let expected = "# HELP a An a.\n# TYPE a gauge\na 1.5\nb_total{x=\"1\\\"2\\\\3\\n4\",y=\"\"} 7\n";
        assert_eq!(text.into_string(), expected);
    }
}
