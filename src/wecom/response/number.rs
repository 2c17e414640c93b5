//! Parses a JSON number byte by byte in constant memory, and converts it to an integer exactly, if it is one.

/// A number being parsed. Every digit counts, however many there are: no rounding, no overflow, no allocation.
///
/// The value so far is `mantissa × 10^(zeros + exponent − fraction)`: zeros after the mantissa are only counted
/// until a later digit makes them significant, so `40014` followed by a thousand zeros and `e-1000` is still
/// 40014.
#[derive(Clone, Debug)]
pub(super) struct JsonNumber {
    state: NumberState,
    negative: bool,
    /// The digits from the first to the last that is not 0; `None` if they no longer fit, and then the number
    /// fits no `i64`.
    mantissa: Option<u64>,
    /// Zeros since the mantissa's last digit. Byte counts cannot overflow an `i64`.
    trailing_zeros: i64,
    /// Digits after the decimal point.
    fraction_digits: i64,
    exponent: i64,
    exponent_negative: bool,
}

/// The state in the grammar of RFC 8259.
#[derive(Clone, Copy, Debug)]
enum NumberState {
    Start,
    Sign,
    Zero,
    Integer,
    Point,
    Fraction,
    ExponentMark,
    ExponentSign,
    Exponent,
}

/// The result of pushing a byte.
pub(super) enum NumberStep {
    /// The byte belongs to the number.
    Consumed,
    /// The number ended before the byte.
    Complete,
    /// The byte makes the number invalid.
    Malformed,
}

/// Exponents are capped here: greater than any digit count, and small enough to be added to one.
const MAX_EXPONENT: i64 = 1 << 56;

impl JsonNumber {
    pub(super) const fn new() -> Self {
        Self {
            state: NumberState::Start,
            negative: false,
            mantissa: Some(0),
            trailing_zeros: 0,
            fraction_digits: 0,
            exponent: 0,
            exponent_negative: false,
        }
    }

    pub(super) fn push(&mut self, byte: u8) -> NumberStep {
        self.state = match (self.state, byte) {
            (NumberState::Start, b'-') => {
                self.negative = true;
                NumberState::Sign
            }
            (NumberState::Start | NumberState::Sign, b'0') => NumberState::Zero,
            (NumberState::Start | NumberState::Sign | NumberState::Integer, b'0'..=b'9') => {
                self.push_digit(byte - b'0');
                NumberState::Integer
            }
            (NumberState::Zero | NumberState::Integer, b'.') => NumberState::Point,
            (NumberState::Point | NumberState::Fraction, b'0'..=b'9') => {
                self.push_digit(byte - b'0');
                self.fraction_digits += 1;
                NumberState::Fraction
            }
            (NumberState::Zero | NumberState::Integer | NumberState::Fraction, b'e' | b'E') => {
                NumberState::ExponentMark
            }
            (NumberState::ExponentMark, b'+' | b'-') => {
                self.exponent_negative = byte == b'-';
                NumberState::ExponentSign
            }
            (NumberState::ExponentMark | NumberState::ExponentSign | NumberState::Exponent, b'0'..=b'9') => {
                self.exponent = (self.exponent * 10 + i64::from(byte - b'0')).min(MAX_EXPONENT);
                NumberState::Exponent
            }
            (NumberState::Zero | NumberState::Integer | NumberState::Fraction | NumberState::Exponent, _) => {
                return NumberStep::Complete;
            }
            _ => return NumberStep::Malformed,
        };
        NumberStep::Consumed
    }

    fn push_digit(&mut self, digit: u8) {
        if digit == 0 {
            self.trailing_zeros += i64::from(self.mantissa != Some(0));
            return;
        }
        self.mantissa = self
            .mantissa
            .and_then(|m| scale_by_power_of_ten(m, self.trailing_zeros + 1))
            .and_then(|m| m.checked_add(u64::from(digit)));
        self.trailing_zeros = 0;
    }

    /// The integer value; `None` if the number is no integer or does not fit.
    ///
    /// A mantissa that did not fit ends in a digit that is not 0, so the number is too large or has a fraction.
    pub(super) fn to_integer(&self) -> Option<i64> {
        let mantissa = self.mantissa?;
        if mantissa == 0 {
            return Some(0);
        }
        let exponent = if self.exponent_negative { -self.exponent } else { self.exponent };
        let magnitude =
            scale_by_power_of_ten(mantissa, self.trailing_zeros + exponent - self.fraction_digits)?;
        if self.negative { 0_i64.checked_sub_unsigned(magnitude) } else { magnitude.try_into().ok() }
    }
}

/// `mantissa × 10^places`; `None` for a negative power, because the mantissa ends in a digit that is not 0.
fn scale_by_power_of_ten(mantissa: u64, places: i64) -> Option<u64> {
    match places {
        1 => mantissa.checked_mul(10), // nearly every call; avoids the general power
        _ => mantissa.checked_mul(10_u64.checked_pow(u32::try_from(places).ok()?)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Option<i64> {
        let mut number = JsonNumber::new();
        for byte in text.bytes() {
            assert!(matches!(number.push(byte), NumberStep::Consumed), "{text}");
        }
        assert!(matches!(number.push(b','), NumberStep::Complete), "{text}");
        number.to_integer()
    }

    #[test]
    fn integer_is_parsed_in_any_notation() {
        for text in
            ["40014", "4.0014e4", "400140E-1", "40014.0", "40014.000", "0.40014e+5", "4001400000e-000005"]
        {
            assert_eq!(parse(text), Some(40014), "{text}");
        }
        for text in ["0", "-0", "0.0", "-0.00e7", "0e999999999999999999999", "0.0e-99999999999999999999"] {
            assert_eq!(parse(text), Some(0), "{text}");
        }
        assert_eq!(parse("-1"), Some(-1));
        assert_eq!(parse("9223372036854775807"), Some(i64::MAX));
        assert_eq!(parse("-9223372036854775808"), Some(i64::MIN));
        assert_eq!(parse("922337203685477580.7e1"), Some(i64::MAX));
    }

    #[test]
    fn non_integer_or_overflow_is_none() {
        for text in [
            "0.5",
            "40014.5",
            "1e-1",
            "9223372036854775808",
            "-9223372036854775809",
            "1e19",
            "1e18446744073709551616",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse("18446744073709551617"), None);
        assert_eq!(parse("40014.00000000000000000000000000000000000000001"), None);
    }

    #[test]
    fn any_number_of_zeros_stays_exact() {
        let zeros = "0".repeat(5000);
        assert_eq!(parse(&format!("40014{zeros}e-5000")), Some(40014));
        assert_eq!(parse(&format!("40014{zeros}.{zeros}e-5000")), Some(40014));
        assert_eq!(parse(&format!("0.{zeros}40014e5005")), Some(40014));
        assert_eq!(parse(&format!("40014{zeros}")), None);
        assert_eq!(parse(&format!("4{zeros}1e-5000")), None);
    }

    #[test]
    fn invalid_number_is_malformed() {
        for text in ["-", "1.", "1e", "1e+", "-e", "."] {
            let mut number = JsonNumber::new();
            let last = text.bytes().chain([b',']).map(|byte| number.push(byte)).last();
            assert!(matches!(last, Some(NumberStep::Malformed)), "{text}");
        }
        let mut number = JsonNumber::new();
        number.push(b'0');
        assert!(matches!(number.push(b'1'), NumberStep::Complete), "a leading zero is a number of its own");
    }

    proptest! {
        /// Shifts the decimal point of an integer: the value stays.
        #[test]
        fn moving_the_point_keeps_the_value(value: i64, zeros in 0_usize..30, behind in 0_usize..50) {
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
            prop_assert_eq!(parse(&text), Some(value), "{}", text);
        }
    }
}
