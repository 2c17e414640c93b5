//! The part of Protocol Buffers that spans need: appends fields, and iterates over the fields of a message.

/// A field's number and wire type.
fn write_tag(out: &mut Vec<u8>, field: u32, wire_type: u32) {
    write_varint(out, u64::from(field << 3 | wire_type));
}

fn write_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// The encoded size of a varint in bytes.
fn varint_len(number: u64) -> usize {
    (64 - (number | 1).leading_zeros() as usize).div_ceil(7)
}

/// The encoded size of a bytes field in bytes, if its number is below 16.
pub(super) fn bytes_field_len(length: usize) -> usize {
    1 + varint_len(length as u64) + length
}

pub(super) fn write_varint_field(out: &mut Vec<u8>, field: u32, number: u64) {
    write_tag(out, field, 0);
    write_varint(out, number);
}

pub(super) fn write_fixed64_field(out: &mut Vec<u8>, field: u32, number: u64) {
    write_tag(out, field, 1);
    out.extend_from_slice(&number.to_le_bytes());
}

pub(super) fn write_fixed32_field(out: &mut Vec<u8>, field: u32, number: u32) {
    write_tag(out, field, 5);
    out.extend_from_slice(&number.to_le_bytes());
}

pub(super) fn write_bytes_field(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    write_length_prefix(out, field, bytes.len());
    out.extend_from_slice(bytes);
}

/// The tag and length before a message or bytes of `length`.
pub(super) fn write_length_prefix(out: &mut Vec<u8>, field: u32, length: usize) {
    write_tag(out, field, 2);
    write_varint(out, length as u64);
}

/// An attribute: a `KeyValue` with a string.
pub(super) fn write_string_attribute(out: &mut Vec<u8>, field: u32, key: &str, value: &str) {
    let any = bytes_field_len(value.len());
    write_length_prefix(out, field, bytes_field_len(key.len()) + bytes_field_len(any));
    write_bytes_field(out, 1, key.as_bytes());
    write_length_prefix(out, 2, any);
    write_bytes_field(out, 1, value.as_bytes());
}

/// An attribute: a `KeyValue` with an integer.
pub(super) fn write_int_attribute(out: &mut Vec<u8>, field: u32, key: &str, value: i64) {
    let any = 1 + varint_len(value as u64);
    write_length_prefix(out, field, bytes_field_len(key.len()) + bytes_field_len(any));
    write_bytes_field(out, 1, key.as_bytes());
    write_length_prefix(out, 2, any);
    write_varint_field(out, 3, value as u64);
}

/// The value of a field; fixed-size values are skipped.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FieldValue<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Other,
}

/// Iterates over a message's fields and ends at the first invalid one.
pub(super) struct FieldReader<'a>(pub(super) &'a [u8]);

impl<'a> FieldReader<'a> {
    fn read_varint(&mut self) -> Option<u64> {
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

    fn read_slice(&mut self, length: u64) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(bytes)
    }
}

impl<'a> Iterator for FieldReader<'a> {
    type Item = (u64, FieldValue<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let tag = self.read_varint()?;
        let value = match tag & 7 {
            0 => FieldValue::Varint(self.read_varint()?),
            1 => self.read_slice(8).map(|_| FieldValue::Other)?,
            2 => {
                let length = self.read_varint()?;
                FieldValue::Bytes(self.read_slice(length)?)
            }
            5 => self.read_slice(4).map(|_| FieldValue::Other)?,
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
        fn written_fields_are_read_back(field in 1..16_u32, given: u64, text: String, value: i64) {
            let mut out = Vec::new();
            write_varint_field(&mut out, field, given);
            write_fixed64_field(&mut out, field, given);
            write_fixed32_field(&mut out, field, given as u32);
            super::write_string_attribute(&mut out, field, &text, &text);
            write_int_attribute(&mut out, field, &text, value);
            let mut reader = FieldReader(&out);
            prop_assert_eq!(reader.next(), Some((u64::from(field), FieldValue::Varint(given))));
            prop_assert_eq!(reader.next(), Some((u64::from(field), FieldValue::Other)));
            prop_assert_eq!(reader.next(), Some((u64::from(field), FieldValue::Other)));
            for any in [(1, FieldValue::Bytes(text.as_bytes())), (3, FieldValue::Varint(value as u64))] {
                let Some((_, FieldValue::Bytes(attribute))) = reader.next() else { panic!("no attribute") };
                let mut reader = FieldReader(attribute);
                prop_assert_eq!(reader.next(), Some((1, FieldValue::Bytes(text.as_bytes()))));
                let Some((2, FieldValue::Bytes(inner))) = reader.next() else { panic!("no value") };
                prop_assert_eq!(FieldReader(inner).collect::<Vec<_>>(), [any]);
                prop_assert!(reader.next().is_none());
            }
            prop_assert!(reader.next().is_none());
        }

        #[test]
        fn field_reader_never_panics(bytes: Vec<u8>) {
            FieldReader(&bytes).for_each(drop);
        }
    }
}
