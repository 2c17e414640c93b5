//! Comparison in constant time.

/// Compares received text with known text. A proxy in front of this one may send several clients' requests on one
/// connection: the time must not reveal to one client how another's key begins.
pub fn constant_time_eq(text: &[u8], known: &[u8]) -> bool {
    if text.len() != known.len() {
        return false;
    }
    // No early exit, so that the time depends only on the length. The last chunk overlaps the one before it: a
    // remainder compared byte by byte would cost more than all before it.
    if let (Some(one), Some(other)) = (text.last_chunk::<WIDE>(), known.last_chunk()) {
        let chunks = text.as_chunks().0.iter().zip(known.as_chunks().0);
        return chunks.fold(add_difference([0; WIDE], one, other), |diff, (one, other)| {
            add_difference(diff, one, other)
        }) == [0; WIDE];
    }
    if let (Some((one, other)), Some((last, other_last))) =
        (text.first_chunk::<HALF>().zip(known.first_chunk()), text.last_chunk().zip(known.last_chunk()))
    {
        return add_difference(add_difference([0; HALF], one, other), last, other_last) == [0; HALF];
    }
    text.iter().zip(known).fold(0, |diff, (one, other)| diff | (one ^ other)) == 0
}

/// Bytes compared at once: two SSE2 registers.
const WIDE: usize = 32;
const HALF: usize = WIDE / 2;

/// Accumulates the bits in which the two differ.
#[inline]
fn add_difference<const N: usize>(mut diff: [u8; N], one: &[u8; N], other: &[u8; N]) -> [u8; N] {
    for nth in 0..N {
        diff[nth] |= one[nth] ^ other[nth];
    }
    diff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_equal_only_if_all_bytes_are() {
        for length in 0..100 {
            let known = vec![b'a'; length];
            assert!(constant_time_eq(&known, &known), "{length}");
            assert!(!constant_time_eq(&[&known[..], b"a"].concat(), &known), "{length}");
            for at in 0..length {
                let mut other = known.clone();
                other[at] ^= 1 << (at % 8);
                assert!(!constant_time_eq(&other, &known), "{at} of {length}");
            }
        }
    }
}
