//! Which cipher TLS is to prefer on this processor.
//!
//! Where a processor has instructions for AES, AES-GCM is the fastest there is; where it has none, or they
//! are emulated, ChaCha20-Poly1305 is.  A migration encrypts all of a guest's memory, so a moment at the
//! start of the agent to find that out is well spent.

use std::time::{Duration, Instant};

use rustls::crypto::cipher::{AeadKey, Iv, OutboundChunks, OutboundPlainMessage};
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::{CryptoProvider, ring};
use rustls::{ContentType, ProtocolVersion, SupportedCipherSuite};

/// As much as a record of TLS holds.
const PIECE: usize = 16 << 10;
/// So many are encrypted; the fastest counts, for something else may run meanwhile.
const PIECES: u64 = 16;

/// The provider of TLS's algorithms, the fastest cipher first.  As a client's choice counts, and clients
/// are who sends memory, it is the source's processor that decides.
pub(super) fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    let [aes, chacha] = [TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256].map(time);
    log::debug!("{PIECE} bytes take {aes:?} by AES-GCM and {chacha:?} by ChaCha20-Poly1305");
    if chacha < aes {
        let is_other = |suite: &SupportedCipherSuite| *suite != TLS13_CHACHA20_POLY1305_SHA256;
        provider.cipher_suites.sort_by_key(is_other);
    }
    provider
}

/// What it takes to encrypt a piece.
fn time(suite: SupportedCipherSuite) -> Duration {
    let Some(suite) = suite.tls13() else {
        return Duration::MAX;
    };
    // It protects nothing.
    let (key, iv) = (AeadKey::from([0x5A; 32]), Iv::from([0xA5; 12]));
    let mut encrypter = suite.aead_alg.encrypter(key, iv);
    let piece = [0xC3; PIECE];
    let mut one = |number| {
        let message = OutboundPlainMessage {
            typ: ContentType::ApplicationData,
            version: ProtocolVersion::TLSv1_3,
            payload: OutboundChunks::Single(&piece),
        };
        let begun = Instant::now();
        let result = encrypter.encrypt(message, number);
        let time = begun.elapsed();
        result.map_or(Duration::MAX, |_| time)
    };
    (0..PIECES).map(&mut one).min().unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::{provider, time};
    use rustls::crypto::ring;
    use std::time::Duration;

    #[test]
    fn all_ciphers_stay_and_both_kinds_can_be_timed() {
        let (ours, all) = (
            provider().cipher_suites,
            ring::default_provider().cipher_suites,
        );
        assert_eq!(ours.len(), all.len());
        assert!(all.iter().all(|suite| ours.contains(suite)));
        let timed = all.into_iter().filter(|suite| {
            let kind = suite.tls13().map(|suite| suite.aead_alg.key_len());
            kind == Some(32)
        });
        let times: Vec<Duration> = timed.map(time).collect();
        assert_eq!(times.len(), 2);
        assert!(times.iter().all(|time| *time < Duration::MAX), "{times:?}");
    }
}
