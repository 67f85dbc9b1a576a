//! CBC initialisation vectors: fresh and unpredictable (RFC 3602 section 3), without a system call per packet.

use aes::Aes256Enc;
use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};
use zeroize::{Zeroize, Zeroizing};

/// Blocks made at a time: enough for the cipher's parallel path, few enough to be cheap to hold.
const POOL_BLOCKS: usize = 16;
const POOL_LENGTH: usize = POOL_BLOCKS * 16;

/// One worker's source of IVs: a block cipher under a random key over a counter.
///
/// The key is nobody's SA key, so a peer that sees every IV so far cannot tell the next one from chance;
/// an IV made from the packet before it (CVE-2022-46397) or from a counter in the clear could be told.
pub struct IvSource {
    cipher: Aes256Enc,
    counter: u128,
    /// Made but not given out yet: the last `left` bytes.
    pool: Zeroizing<[u8; POOL_LENGTH]>,
    left: usize,
}

impl IvSource {
    /// Keyed from the system's entropy.
    ///
    /// # Errors
    /// When the kernel gives none; nothing is sent then.
    pub fn from_entropy() -> Result<Self, getrandom::Error> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut())?;
        Ok(Self::keyed(&seed))
    }

    /// Deterministic, for offline runs and tests.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self::keyed(&Zeroizing::new(seed))
    }

    fn keyed(key: &[u8; 32]) -> Self {
        let cipher = Aes256Enc::new(key.into());
        Self { cipher, counter: 0, pool: Zeroizing::new([0; POOL_LENGTH]), left: 0 }
    }

    /// Fills `out` with IV bytes; no byte is given out twice.
    pub fn fill(&mut self, mut out: &mut [u8]) {
        while !out.is_empty() {
            if self.left == 0 {
                self.refill();
            }
            let count = out.len().min(self.left);
            let (filled, rest) = out.split_at_mut(count);
            let unused = &mut self.pool[POOL_LENGTH - self.left..][..count];
            filled.copy_from_slice(unused);
            unused.zeroize();
            self.left -= count;
            out = rest;
        }
    }

    fn refill(&mut self) {
        let (blocks, _) = Array::slice_as_chunks_mut(self.pool.as_mut_slice());
        for block in blocks.iter_mut() {
            // 2^128 blocks: it does not wrap.
            self.counter += 1;
            *block = Array(self.counter.to_be_bytes());
        }
        self.cipher.encrypt_blocks(blocks);
        self.left = POOL_LENGTH;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ivs_differ_within_and_between_sources() {
        let mut seen = HashSet::new();
        let mut sources = [
            IvSource::from_seed([1; 32]),
            IvSource::from_seed([2; 32]),
            IvSource::from_entropy().unwrap(),
            IvSource::from_entropy().unwrap(),
        ];
        for _ in 0..10_000 {
            for source in &mut sources {
                let mut iv = [0; 16];
                source.fill(&mut iv);
                assert!(seen.insert(iv));
            }
        }
    }

    #[test]
    fn bytes_come_in_one_stream_whatever_the_lengths_asked_for() {
        let mut whole = [0; 3 * POOL_LENGTH];
        IvSource::from_seed([7; 32]).fill(&mut whole);
        let mut parts = [0; 3 * POOL_LENGTH];
        let mut source = IvSource::from_seed([7; 32]);
        let mut rest = &mut parts[..];
        for length in [8, 16, 16, 8, 300, 0, 16].into_iter().chain(std::iter::repeat(8)) {
            let (now, later) = rest.split_at_mut(length.min(rest.len()));
            source.fill(now);
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        assert_eq!(whole, parts);
    }

    /// AES-256 of the blocks 1 and 2 under the seed, from OpenSSL 3.0 (`openssl enc -aes-256-ecb -nopad`).
    #[test]
    fn the_stream_is_the_cipher_over_a_counter() {
        let mut ivs = [0; 32];
        IvSource::from_seed([0x42; 32]).fill(&mut ivs);
        assert_eq!(hex::encode(ivs), "1a617befa577e0b78c66db5b289e6113f4b2fff95c8c85e7994f4b0f318bb551");
    }

    /// Not a proof of unpredictability (the cipher is that), but a sieve for an IV that repeats a
    /// counter, a ciphertext or a constant: every bit is as often one as zero, also from one IV to the next.
    #[test]
    fn every_bit_flips_half_the_time() {
        const COUNT: u32 = 20_000;
        let mut source = IvSource::from_seed([9; 32]);
        let mut ones = [0u32; 128];
        let mut flips = [0u32; 128];
        let mut before = 0u128;
        for _ in 0..COUNT {
            let mut iv = [0; 16];
            source.fill(&mut iv);
            let iv = u128::from_be_bytes(iv);
            for bit in 0..128 {
                ones[bit] += (iv >> bit) as u32 & 1;
                flips[bit] += ((iv ^ before) >> bit) as u32 & 1;
            }
            before = iv;
        }
        // Six standard deviations: sqrt(20000)/2 = 71.
        for count in ones.into_iter().chain(flips) {
            assert!(count.abs_diff(COUNT / 2) < 6 * 71, "{count}");
        }
    }
}
