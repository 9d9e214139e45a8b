//! A byte stream whose every byte follows from its position, so that a reader notices any byte that
//! is lost, repeated, swapped or changed.

/// The stream with a given key; each connection has its own, so that crossed streams show.
#[derive(Debug, Clone)]
pub struct Stream {
    key: u64,
    position: u64,
}

impl Stream {
    /// The stream's beginning.
    #[must_use]
    pub fn new(key: u64) -> Self {
        Self { key, position: 0 }
    }

    /// How many bytes were taken or checked.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    fn byte(&self, position: u64) -> u8 {
        let word = (position / 8)
            .wrapping_add(self.key)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (word ^ (word >> 32)).to_le_bytes()[(position % 8) as usize]
    }

    /// Fills `buffer` with the next bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for byte in &mut *buffer {
            *byte = self.byte(self.position);
            self.position += 1;
        }
    }

    /// Compares `bytes` with the next ones.
    ///
    /// # Errors
    /// The position of the first that differs.
    pub fn check(&mut self, bytes: &[u8]) -> Result<(), u64> {
        for &byte in bytes {
            if byte != self.byte(self.position) {
                return Err(self.position);
            }
            self.position += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Stream;

    #[test]
    fn the_stream_checks_itself_in_any_pieces() {
        let mut bytes = [0; 1000];
        Stream::new(5).fill(&mut bytes);
        let mut reader = Stream::new(5);
        assert!(bytes.chunks(7).all(|piece| reader.check(piece).is_ok()));
        assert_eq!(reader.position(), 1000);
        bytes[500] ^= 1;
        assert_eq!(Stream::new(5).check(&bytes), Err(500));
        bytes[500] ^= 1;
        assert!(
            Stream::new(5).check(&bytes[8..]).is_err(),
            "eight bytes lost"
        );
        assert!(Stream::new(6).check(&bytes).is_err(), "another's stream");
    }
}
