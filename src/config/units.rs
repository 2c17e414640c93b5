//! Whole numbers with a unit, for durations and sizes.

/// Units with their factors, from the largest to the smallest.
pub(super) type Units = [(&'static str, u64)];

/// Parses a number with one of the units. An overflow becomes `u64::MAX`.
pub(super) fn parse(text: &str, units: &Units) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit).filter(|_| digits > 0)?;
    // The text contains only digits, so parsing fails only on overflow.
    Some(number.parse::<u64>().unwrap_or(u64::MAX).saturating_mul(*factor))
}

/// Formats a number in the largest unit that needs no fraction; zero with `unit_of_zero`.
pub(super) fn format(number: u128, units: &Units, unit_of_zero: &str) -> String {
    let unit = units.iter().find(|(_, factor)| number != 0 && number.is_multiple_of(u128::from(*factor)));
    let (name, factor) = unit.copied().unwrap_or((unit_of_zero, 1));
    format!("{}{name}", number / u128::from(factor))
}
