//! The Internet checksum: RFC 1071 in full, RFC 1624 by difference.

/// One's complement sum of `bytes`, folded, complemented: the value for a header whose checksum field is 0.
pub fn internet(bytes: &[u8]) -> u16 {
    let _ = bytes;
    todo!()
}

/// RFC 1624 equation 3: the checksum after a 16-bit field changed from `old` to `new`.
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    let _ = (checksum, old, new);
    todo!()
}
