//! IDs of sessions, and the fencing token with its seal.

use std::fmt;
use std::str::FromStr;

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// ID of a session, unique for ever: 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId([u8; 16]);

/// The fencing token: whoever has it may run the guest at the destination.  Only the source knows it until
/// the hand-over.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token([u8; 32]);

/// The SHA-256 of a token, by which the destination recognises it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seal([u8; 32]);

impl SessionId {
    /// From random bytes.
    #[must_use]
    pub const fn new(random: [u8; 16]) -> Self {
        Self(random)
    }
}

impl Token {
    /// From random bytes.
    #[must_use]
    pub const fn new(random: [u8; 32]) -> Self {
        Self(random)
    }

    /// The seal, which may be known before the token.
    #[must_use]
    pub fn seal(&self) -> Seal {
        Seal(Sha256::digest(self.0).into())
    }
}

impl Seal {
    /// Whether this is the seal of the token.
    #[must_use]
    pub fn fits(&self, token: &Token) -> bool {
        // Digests are compared, so the time that this takes reveals nothing about the token.
        token.seal() == *self
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It is a secret, and many people read logs.
        f.write_str("Token(…)")
    }
}

/// Text and serde forms: lower-case hexadecimal digits.
macro_rules! hexadecimal {
    ($type:ident, $bytes:literal) => {
        impl $type {
            fn hex(&self) -> String {
                HEXLOWER.encode(&self.0)
            }
        }

        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
                let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
                let bytes: [u8; $bytes] =
                    bytes.ok_or_else(|| format!("not {} hexadecimal digits", 2 * $bytes))?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.hex())
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}

hexadecimal!(SessionId, 16);
hexadecimal!(Token, 32);
hexadecimal!(Seal, 32);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({})", self.hex())
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seal({})", self.hex())
    }
}

#[cfg(test)]
mod tests {
    use super::{SessionId, Token};

    #[test]
    fn a_seal_fits_its_token_only() {
        let token = Token::new([7; 32]);
        assert!(token.seal().fits(&token));
        assert!(!token.seal().fits(&Token::new([8; 32])));
    }

    #[test]
    fn names_are_read_as_they_are_written_and_nothing_else_is() {
        let id = SessionId::new([0xa5; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in ["", "a5", &"g".repeat(32), &"a".repeat(33), &"ä".repeat(16)] {
            assert!(wrong.parse::<SessionId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_log_does_not_tell_the_token() {
        assert!(!format!("{:?}", Token::new([0xab; 32])).contains("ab"));
    }
}
