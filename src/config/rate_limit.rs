//! Rate limits: `"600/m"`, the number of requests per second, minute or hour.

use std::fmt;
use std::time::Duration;

use super::error::{Error, quote};
use super::reader::ConfigValue;
use crate::text::Text;
use crate::{format_text, text};

const UNITS: [(&str, u64); 3] = [("s", 1), ("m", 60), ("h", 3600)];

const EXPECTED: Text = text!("a limit like \"600/m\" (/s, /m, /h)", "\"600/m\" 这样的限制（/s、/m、/h）");

/// A number of requests per unit of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// The number of requests; at least 1.
    pub requests: u32,
    /// A second, a minute or an hour.
    pub per: Duration,
}

impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit =
            UNITS.iter().find(|(_, seconds)| *seconds == self.per.as_secs()).map_or("?", |(name, _)| name);
        write!(f, "{}/{unit}", self.requests)
    }
}

pub(super) fn read(item: &ConfigValue<'_>) -> Result<RateLimit, Error> {
    let text = item.string(EXPECTED)?;
    let limit = parse(text)
        .ok_or_else(|| item.error(format_text!("{} is not {}", "{} 不是 {}", quote(text), EXPECTED)))?;
    if limit.requests == 0 {
        return Err(item.error(text!(
            "would allow no request; the count must be 1 or more",
            "不允许任何请求；数量必须至少为 1"
        )));
    }
    Ok(limit)
}

fn parse(text: &str) -> Option<RateLimit> {
    let (count, unit) = text.split_once('/')?;
    let (_, seconds) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let count = count.parse().ok().filter(|_| count.bytes().all(|b| b.is_ascii_digit()))?;
    Some(RateLimit { requests: count, per: Duration::from_secs(*seconds) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_reads_displayed_limit_only() {
        for text in ["1/s", "600/m", "4294967295/h"] {
            assert_eq!(parse(text).map(|limit| limit.to_string()).as_deref(), Some(text));
        }
        for text in
            ["", "/m", "600", "600/", "600/d", "+6/m", "-6/m", "6.5/m", "600 / m", "4294967296/h", "6/m/s"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
