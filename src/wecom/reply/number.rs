//! A JSON number, read a byte at a time in constant memory, and the integer it is, exactly, if it is one.

/// A number being read. Every digit counts, however many there are: no rounding, no overflow, no allocation.
///
/// What was read so far is `mantissa × 10^(zeros + exponent − fraction)`: the zeros after the mantissa are only counted
/// until a later digit proves them significant, so `40014` followed by a thousand zeros and `e-1000` is still 40014.
#[derive(Clone, Debug)]
pub(super) struct Number {
    at: At,
    negative: bool,
    /// The digits from the first to the last that is not 0; `None` when they no longer fit, and with them no `i64`.
    mantissa: Option<u64>,
    /// Zeros read since the mantissa's last digit. Counts of bytes cannot overflow an `i64`.
    zeros: i64,
    /// Digits behind the point.
    fraction: i64,
    exponent: i64,
    exponent_negative: bool,
}

/// What may come next, by the grammar of RFC 8259.
#[derive(Clone, Copy, Debug)]
enum At {
    Start,
    Sign,
    Zero,
    Integer,
    Point,
    Fraction,
    E,
    ESign,
    Exponent,
}

/// What a byte did to the number.
pub(super) enum Step {
    /// It belongs to the number.
    Taken,
    /// The number was complete before it.
    Ended,
    /// No number goes on like this.
    Malformed,
}

/// Exponents beyond it are cut down to it: further than any count of digits reaches, and safe to add to one.
const FAR: i64 = 1 << 56;

impl Number {
    pub(super) const fn new() -> Self {
        Self {
            at: At::Start,
            negative: false,
            mantissa: Some(0),
            zeros: 0,
            fraction: 0,
            exponent: 0,
            exponent_negative: false,
        }
    }

    pub(super) fn push(&mut self, byte: u8) -> Step {
        self.at = match (self.at, byte) {
            (At::Start, b'-') => {
                self.negative = true;
                At::Sign
            }
            (At::Start | At::Sign, b'0') => At::Zero,
            (At::Start | At::Sign | At::Integer, b'0'..=b'9') => {
                self.digit(byte - b'0');
                At::Integer
            }
            (At::Zero | At::Integer, b'.') => At::Point,
            (At::Point | At::Fraction, b'0'..=b'9') => {
                self.digit(byte - b'0');
                self.fraction += 1;
                At::Fraction
            }
            (At::Zero | At::Integer | At::Fraction, b'e' | b'E') => At::E,
            (At::E, b'+' | b'-') => {
                self.exponent_negative = byte == b'-';
                At::ESign
            }
            (At::E | At::ESign | At::Exponent, b'0'..=b'9') => {
                self.exponent = (self.exponent * 10 + i64::from(byte - b'0')).min(FAR);
                At::Exponent
            }
            (At::Zero | At::Integer | At::Fraction | At::Exponent, _) => return Step::Ended,
            _ => return Step::Malformed,
        };
        Step::Taken
    }

    fn digit(&mut self, digit: u8) {
        if digit == 0 {
            self.zeros += i64::from(self.mantissa != Some(0));
            return;
        }
        self.mantissa = self
            .mantissa
            .and_then(|m| scaled(m, self.zeros + 1))
            .and_then(|m| m.checked_add(u64::from(digit)));
        self.zeros = 0;
    }

    /// The integer that the number is, `None` if it is none or does not fit.
    ///
    /// A mantissa that did not fit ends in a digit that is not 0, so the number is too large or has a fraction.
    pub(super) fn integer(&self) -> Option<i64> {
        let mantissa = self.mantissa?;
        if mantissa == 0 {
            return Some(0);
        }
        let exponent = if self.exponent_negative { -self.exponent } else { self.exponent };
        let magnitude = scaled(mantissa, self.zeros + exponent - self.fraction)?;
        if self.negative { 0_i64.checked_sub_unsigned(magnitude) } else { magnitude.try_into().ok() }
    }
}

/// `mantissa × 10^places`, `None` for a negative power: the mantissa ends in a digit that is not 0.
fn scaled(mantissa: u64, places: i64) -> Option<u64> {
    match places {
        1 => mantissa.checked_mul(10), // nearly every call; spares the general power
        _ => mantissa.checked_mul(10_u64.checked_pow(u32::try_from(places).ok()?)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Option<i64> {
        let mut number = Number::new();
        for byte in text.bytes() {
            assert!(matches!(number.push(byte), Step::Taken), "{text}");
        }
        assert!(matches!(number.push(b','), Step::Ended), "{text}");
        number.integer()
    }

    #[test]
    fn integers_in_every_spelling() {
        for text in
            ["40014", "4.0014e4", "400140E-1", "40014.0", "40014.000", "0.40014e+5", "4001400000e-000005"]
        {
            assert_eq!(read(text), Some(40014), "{text}");
        }
        for text in ["0", "-0", "0.0", "-0.00e7", "0e999999999999999999999", "0.0e-99999999999999999999"] {
            assert_eq!(read(text), Some(0), "{text}");
        }
        assert_eq!(read("-1"), Some(-1));
        assert_eq!(read("9223372036854775807"), Some(i64::MAX));
        assert_eq!(read("-9223372036854775808"), Some(i64::MIN));
        assert_eq!(read("922337203685477580.7e1"), Some(i64::MAX));
    }

    #[test]
    fn what_is_no_integer_or_too_large() {
        for text in [
            "0.5",
            "40014.5",
            "1e-1",
            "9223372036854775808",
            "-9223372036854775809",
            "1e19",
            "1e18446744073709551616",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(read("18446744073709551617"), None);
        assert_eq!(read("40014.00000000000000000000000000000000000000001"), None);
    }

    #[test]
    fn any_number_of_zeros_is_exact() {
        let zeros = "0".repeat(5000);
        assert_eq!(read(&format!("40014{zeros}e-5000")), Some(40014));
        assert_eq!(read(&format!("40014{zeros}.{zeros}e-5000")), Some(40014));
        assert_eq!(read(&format!("0.{zeros}40014e5005")), Some(40014));
        assert_eq!(read(&format!("40014{zeros}")), None);
        assert_eq!(read(&format!("4{zeros}1e-5000")), None);
    }

    #[test]
    fn grammar_is_strict() {
        for text in ["-", "1.", "1e", "1e+", "-e", "."] {
            let mut number = Number::new();
            let last = text.bytes().chain([b',']).map(|byte| number.push(byte)).last();
            assert!(matches!(last, Some(Step::Malformed)), "{text}");
        }
        let mut number = Number::new();
        number.push(b'0');
        assert!(matches!(number.push(b'1'), Step::Ended), "a leading zero is a number of its own");
    }

    proptest! {
        /// Shifts the point of an integer about: the value stays.
        #[test]
        fn moving_the_point_changes_nothing(value: i64, zeros in 0_usize..30, behind in 0_usize..50) {
            let digits = format!("{}{}", value.unsigned_abs(), "0".repeat(zeros));
            let sign = if value < 0 { "-" } else { "" };
            let split = digits.len().saturating_sub(behind);
            let (whole, fraction) = digits.split_at(split);
            let whole = if whole.is_empty() { "0" } else { whole };
            let exponent = fraction.len() as i64 - zeros as i64;
            let text = match fraction {
                "" => format!("{sign}{whole}e{exponent}"),
                _ => format!("{sign}{whole}.{fraction}E{exponent}"),
            };
            prop_assert_eq!(read(&text), Some(value), "{}", text);
        }
    }
}
