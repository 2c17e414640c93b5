//! Durations as decimal milliseconds.

use std::time::Duration;

use bytes::BufMut;

/// Appends a duration in milliseconds, rounded to three decimals.
pub fn put_milliseconds(out: &mut impl BufMut, duration: Duration) {
    // Usually there was no wait.
    if duration.is_zero() {
        return out.put_slice(b"0.000");
    }
    let micros = duration.as_secs().saturating_mul(1_000_000);
    let micros = micros.saturating_add(u64::from((duration.subsec_nanos() + 500) / 1000));
    let (whole, below) = (micros / 1000, (micros % 1000) as u32);
    let [hundreds, tens, ones] = [below / 100, below / 10 % 10, below % 10].map(|digit| b'0' + digit as u8);
    if whole < 10 {
        return out.put_slice(&[b'0' + whole as u8, b'.', hundreds, tens, ones]);
    }
    out.put_slice(itoa::Buffer::new().format(whole).as_bytes());
    out.put_slice(&[b'.', hundreds, tens, ones]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_have_three_decimals() {
        let text = |duration| {
            let mut out = Vec::new();
            put_milliseconds(&mut out, duration);
            String::from_utf8(out).expect("text")
        };
        for (nanos, expected) in [
            (0, "0.000"),
            (499, "0.000"),
            (500, "0.001"),
            (7_000, "0.007"),
            (1_234_499, "1.234"),
            (999_999_500, "1000.000"),
        ] {
            assert_eq!(text(Duration::from_nanos(nanos)), expected);
        }
        assert_eq!(text(Duration::from_micros(5_000_010)), "5000.010");
        assert_eq!(text(Duration::MAX), "18446744073709551.615");
    }
}
