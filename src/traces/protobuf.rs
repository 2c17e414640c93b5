//! As much of Protocol Buffers as spans take: fields are appended, and those of a message are walked through.

/// A field's number and what its bytes look like.
fn tag(out: &mut Vec<u8>, field: u32, wire: u32) {
    varint(out, u64::from(field << 3 | wire));
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// How many bytes a varint takes.
fn width(number: u64) -> usize {
    (64 - (number | 1).leading_zeros() as usize).div_ceil(7)
}

/// How many bytes a field of bytes takes, if its number is below 16.
pub(super) fn width_of(length: usize) -> usize {
    1 + width(length as u64) + length
}

pub(super) fn number(out: &mut Vec<u8>, field: u32, number: u64) {
    tag(out, field, 0);
    varint(out, number);
}

pub(super) fn fixed64(out: &mut Vec<u8>, field: u32, number: u64) {
    tag(out, field, 1);
    out.extend_from_slice(&number.to_le_bytes());
}

pub(super) fn fixed32(out: &mut Vec<u8>, field: u32, number: u32) {
    tag(out, field, 5);
    out.extend_from_slice(&number.to_le_bytes());
}

pub(super) fn bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    head(out, field, bytes.len());
    out.extend_from_slice(bytes);
}

/// What stands before a message, or before any bytes, of this length.
pub(super) fn head(out: &mut Vec<u8>, field: u32, length: usize) {
    tag(out, field, 2);
    varint(out, length as u64);
}

/// An attribute: a `KeyValue` with text.
pub(super) fn text(out: &mut Vec<u8>, field: u32, key: &str, value: &str) {
    let any = width_of(value.len());
    head(out, field, width_of(key.len()) + width_of(any));
    bytes(out, 1, key.as_bytes());
    head(out, 2, any);
    bytes(out, 1, value.as_bytes());
}

/// An attribute: a `KeyValue` with a whole number.
pub(super) fn integer(out: &mut Vec<u8>, field: u32, key: &str, value: i64) {
    let any = 1 + width(value as u64);
    head(out, field, width_of(key.len()) + width_of(any));
    bytes(out, 1, key.as_bytes());
    head(out, 2, any);
    number(out, 3, value as u64);
}

/// What a field holds, as far as anybody here looks at it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Other,
}

/// A message's fields, one after the other, up to the first that makes no sense.
pub(super) struct Walk<'a>(pub(super) &'a [u8]);

impl<'a> Walk<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn piece(&mut self, length: u64) -> Option<&'a [u8]> {
        let (piece, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(piece)
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = (u64, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.piece(8).map(|_| Value::Other)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.piece(length)?)
            }
            5 => self.piece(4).map(|_| Value::Other)?,
            _ => return None,
        };
        Some((tag >> 3, value))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(field in 1..16_u32, given: u64, text: String, value: i64) {
            let mut out = Vec::new();
            number(&mut out, field, given);
            fixed64(&mut out, field, given);
            fixed32(&mut out, field, given as u32);
            super::text(&mut out, field, &text, &text);
            integer(&mut out, field, &text, value);
            let mut walk = Walk(&out);
            prop_assert_eq!(walk.next(), Some((u64::from(field), Value::Number(given))));
            prop_assert_eq!(walk.next(), Some((u64::from(field), Value::Other)));
            prop_assert_eq!(walk.next(), Some((u64::from(field), Value::Other)));
            for any in [(1, Value::Bytes(text.as_bytes())), (3, Value::Number(value as u64))] {
                let Some((_, Value::Bytes(attribute))) = walk.next() else { panic!("no attribute") };
                let mut walk = Walk(attribute);
                prop_assert_eq!(walk.next(), Some((1, Value::Bytes(text.as_bytes()))));
                let Some((2, Value::Bytes(inner))) = walk.next() else { panic!("no value") };
                prop_assert_eq!(Walk(inner).collect::<Vec<_>>(), [any]);
                prop_assert!(walk.next().is_none());
            }
            prop_assert!(walk.next().is_none());
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            Walk(&bytes).for_each(drop);
        }
    }
}
