//! The CRC-32 of gzip, eight bytes at a time: an image has tens of MiB and the machine may be slow.

const POLYNOMIAL: u32 = 0xedb8_8320;

/// `TABLES[n][b]` is the remainder of byte `b` followed by `n` zero bytes.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            value = (value >> 1) ^ if value & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        tables[0][byte] = value;
        byte += 1;
    }
    let mut zeroes = 1;
    while zeroes < 8 {
        byte = 0;
        while byte < 256 {
            let before = tables[zeroes - 1][byte];
            tables[zeroes][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        zeroes += 1;
    }
    tables
}

/// Returns the checksum of `data`.
pub(super) fn crc32(data: &[u8]) -> u32 {
    let (chunks, rest) = data.as_chunks::<8>();
    let mut crc = !0;
    for chunk in chunks {
        let chunk = (u64::from_le_bytes(*chunk) ^ u64::from(crc)).to_le_bytes();
        crc = 0;
        for (byte, table) in chunk.iter().zip(TABLES.iter().rev()) {
            crc ^= table[usize::from(*byte)];
        }
    }
    for byte in rest {
        crc = (crc >> 8) ^ TABLES[0][usize::from(crc.to_le_bytes()[0] ^ byte)];
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::crc32;

    #[test]
    fn the_check_value_of_the_polynomial_comes_out() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
    }
}
