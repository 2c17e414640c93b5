//! The time at which a certificate expires, read from its DER: rustls parses it, but has no way to read it.

/// `notAfter` of a certificate (RFC 5280 §4.1.2.5), in seconds since 1970; `None` if the bytes are no certificate.
pub(super) fn not_after(certificate: &[u8]) -> Option<u64> {
    const SEQUENCE: u8 = 0x30;
    const VERSION: u8 = 0xa0;
    let mut outer = certificate;
    let mut certificate = read_element(&mut outer, SEQUENCE)?;
    let mut signed = read_element(&mut certificate, SEQUENCE)?;
    // The version is optional; a serial number, the algorithm and the issuer follow.
    if signed.first() == Some(&VERSION) {
        read_element(&mut signed, VERSION)?;
    }
    for tag in [0x02, SEQUENCE, SEQUENCE] {
        read_element(&mut signed, tag)?;
    }
    let mut validity = read_element(&mut signed, SEQUENCE)?;
    let not_before = *validity.first()?;
    read_element(&mut validity, not_before)?;
    let tag = *validity.first()?;
    parse_time(tag, read_element(&mut validity, tag)?)
}

/// Takes the content of an element with this tag from the front.
fn read_element<'a>(bytes: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let (&found, rest) = bytes.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let length = match first {
        0..=0x7f => usize::from(first),
        0x81..=0x84 => {
            let (digits, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
            rest = after;
            digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit))
        }
        _ => return None,
    };
    let (content, after) = rest.split_at_checked(length).filter(|_| found == tag)?;
    *bytes = after;
    Some(content)
}

/// `YYMMDDHHMMSSZ` (UTCTime) or `YYYYMMDDHHMMSSZ` (GeneralizedTime).
fn parse_time(tag: u8, text: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(text.strip_suffix(b"Z")?).ok()?;
    let number = |from: usize| digits.get(from..from + 2)?.parse::<i64>().ok();
    let (year, rest) = match tag {
        0x17 => (number(0).map(|year| if year < 50 { 2000 + year } else { 1900 + year })?, 2),
        0x18 => (100 * number(0)? + number(2)?, 4),
        _ => return None,
    };
    let (month, day) = (number(rest)?, number(rest + 2)?);
    let (hour, minute, second) = (number(rest + 4)?, number(rest + 6)?, number(rest + 8)?);
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    u64::try_from(seconds).ok()
}

/// Days of the Gregorian calendar, counted in years that begin in March.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_of_generated_certificates_is_found() {
        let key = rcgen::KeyPair::generate().expect("a key");
        for (year, month, day, expected) in
            [(2024, 2, 29, 1_709_164_800), (2049, 12, 31, 2_524_521_600), (2050, 3, 1, 2_529_705_600)]
        {
            let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(year, month, day);
            let certificate = params.self_signed(&key).expect("a certificate");
            assert_eq!(not_after(certificate.der()), Some(expected), "{year}");
            for cut in 0..certificate.der().len().min(200) {
                let _ = not_after(&certificate.der()[..cut]);
            }
        }
        assert_eq!(not_after(b""), None);
        assert_eq!(not_after(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
