//! The cipher that TLS prefers on this processor.
//!
//! AES-GCM is fastest on a processor with AES instructions; ChaCha20-Poly1305 is fastest if there are none or
//! they are emulated.  A migration encrypts all of a guest's memory, so a short measurement at the start of
//! the agent pays.

use std::time::{Duration, Instant};

use rustls::crypto::cipher::{AeadKey, Iv, OutboundChunks, OutboundPlainMessage};
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::{CryptoProvider, ring};
use rustls::{ContentType, ProtocolVersion, SupportedCipherSuite};

/// The size of a TLS record.
const PIECE: usize = 16 << 10;
/// Number of measurements; the fastest counts, because other work may interfere.
const PIECES: u64 = 16;

/// The TLS provider, with the fastest cipher first.  The client's order decides and the client sends the
/// memory, so the source's processor decides.
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

/// The time to encrypt a piece.
fn time(suite: SupportedCipherSuite) -> Duration {
    let Some(suite) = suite.tls13() else {
        return Duration::MAX;
    };
    // This key protects nothing.
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
