//! Properties of seal and open over every suite. Known answers are in `self_test` and in the vector tests.

use aes_gcm::aead::{AeadInOut, KeyInit, Nonce, Tag};
use proptest::collection::vec;
use proptest::prelude::*;
use zeroize::{ZeroizeOnDrop, Zeroizing};

use super::primitive::AeadSeal;
use super::sequence::SequenceCounter;
use super::*;

/// Each suite without and with ESN.
fn every_suite() -> impl Iterator<Item = (Suite, bool)> {
    Suite::all().flat_map(|suite| [(suite, false), (suite, true)])
}

fn keys(suite: Suite, seed: u8) -> KeyMaterial {
    // Multiples of an odd number: all different, so no part of a 3DES key is like another, and none is weak.
    let key = |length: usize| {
        let bytes = (0..length as u8).map(|n| (n.wrapping_mul(37)).wrapping_add(seed) | 2);
        Key::new(Zeroizing::new(bytes.collect()))
    };
    KeyMaterial {
        encryption: key(suite.encryption_key_length()),
        authentication: key(suite.authentication_key_length()),
    }
}

fn fresh(sequence: u64) -> FreshSequence {
    SequenceCounter::starting_after(sequence - 1).take(1, sequence).unwrap().next().unwrap()
}

fn esp_length(suite: Suite, payload_length: usize) -> usize {
    8 + usize::from(suite.iv_length())
        + (payload_length + 2).next_multiple_of(suite.alignment().into())
        + usize::from(suite.icv_length())
}

fn ciphertext_length(suite: Suite, esp: &[u8]) -> usize {
    esp.len() - 8 - usize::from(suite.iv_length()) - usize::from(suite.icv_length())
}

/// One packet, sealed with minimal padding.
fn sealed(suite: Suite, esn: bool, sequence: u64, payload: &[u8]) -> Vec<u8> {
    let mut esp = vec![0xa5; esp_length(suite, payload.len())];
    let packet = Seal { esp: &mut esp, payload, next_header: 4, sequence: fresh(sequence) };
    let sealer = Sealer::new(suite, &keys(suite, 1), esn).unwrap();
    sealer.seal(Spi(0x0102_0304), &mut [packet], &mut IvSource::from_seed([1; 32]));
    esp
}

/// The authenticated number, and what is in the plaintext buffer afterwards (0xa5 before).
fn opened(opener: &Opener, esp: &[u8], sequence: u64, plaintext_length: usize) -> (Option<u64>, Vec<u8>) {
    let mut plaintext = vec![0xa5; plaintext_length];
    let mut burst = [Open { esp, plaintext: &mut plaintext, sequence, verdict: None }];
    opener.open(&mut burst);
    let [Open { verdict, .. }] = burst;
    (verdict.map(|verdict| verdict.sequence()), plaintext)
}

/// Refused, and nothing but zeros left.
fn assert_refused((verdict, plaintext): (Option<u64>, Vec<u8>), why: &str) {
    assert_eq!(verdict, None, "{why}");
    assert!(plaintext.iter().all(|&byte| byte == 0), "{why}: not wiped");
}

/// What RFC 4303 section 2.4 wants of a plaintext: payload, 1, 2, 3 …, pad length, next header.
fn plaintext_of(payload: &[u8], length: usize, next_header: u8) -> Vec<u8> {
    let pad_length = (length - payload.len() - 2) as u8;
    [payload, &(1..=pad_length).collect::<Vec<_>>(), &[pad_length, next_header]].concat()
}

#[derive(Debug, Clone)]
struct Packet {
    payload: Vec<u8>,
    extra_padding: usize,
    next_header: u8,
}

fn packets() -> impl Strategy<Value = Vec<Packet>> {
    let packet = (vec(any::<u8>(), 0..200), 0..4usize, any::<u8>())
        .prop_map(|(payload, extra_padding, next_header)| Packet { payload, extra_padding, next_header });
    vec(packet, 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Bursts of any size and mix of lengths come back as they were, nothing around the packet is
    /// touched, no two IVs are alike, and the burst is spent.
    #[test]
    fn what_is_sealed_opens(packets in packets(), first in 1..u64::from(u32::MAX) - 100, high in any::<u32>()) {
        const GUARD: usize = 16;
        for (suite, esn) in every_suite() {
            let first = if esn { u64::from(high) << 32 | first } else { first };
            let sealer = Sealer::new(suite, &keys(suite, 3), esn).unwrap();
            let opener = Opener::new(suite, &keys(suite, 3), esn).unwrap();
            let mut frames: Vec<Vec<u8>> = packets
                .iter()
                .map(|packet| {
                    let extra = packet.extra_padding * usize::from(suite.alignment());
                    vec![0xa5; GUARD + esp_length(suite, packet.payload.len()) + extra + GUARD]
                })
                .collect();
            let mut numbers = SequenceCounter::starting_after(first - 1).take(40, first + 39).unwrap();
            let mut burst: Vec<Seal<'_>> = frames
                .iter_mut()
                .zip(&packets)
                .map(|(frame, packet)| {
                    let end = frame.len() - GUARD;
                    Seal {
                        esp: &mut frame[GUARD..end],
                        payload: &packet.payload,
                        next_header: packet.next_header,
                        sequence: numbers.next().unwrap(),
                    }
                })
                .collect();
            sealer.seal(Spi(0x0102_0304), &mut burst, &mut IvSource::from_seed([5; 32]));
            prop_assert!(burst.iter().all(|packet| packet.esp.is_empty()));

            let mut ivs = std::collections::HashSet::new();
            let mut plaintexts = Vec::new();
            for (at, frame) in frames.iter().enumerate() {
                let (front, rest) = frame.split_at(GUARD);
                let (esp, back) = rest.split_at(rest.len() - GUARD);
                prop_assert!(front.iter().chain(back).all(|&byte| byte == 0xa5));
                let number = first + at as u64;
                prop_assert_eq!(&esp[..4], &[1, 2, 3, 4]);
                prop_assert_eq!(&esp[4..8], &(number as u32).to_be_bytes());
                let iv = &esp[8..8 + usize::from(suite.iv_length())];
                if suite.is_counter_mode() {
                    prop_assert_eq!(iv, number.to_be_bytes());
                }
                prop_assert!(ivs.insert(iv.to_vec()) || suite.iv_length() == 0);
                plaintexts.push(vec![0xa5; GUARD + ciphertext_length(suite, esp) + GUARD]);
            }
            let mut burst: Vec<Open<'_>> = frames
                .iter()
                .zip(&mut plaintexts)
                .enumerate()
                .map(|(at, (frame, plaintext))| {
                    let end = plaintext.len() - GUARD;
                    Open {
                        esp: &frame[GUARD..frame.len() - GUARD],
                        plaintext: &mut plaintext[GUARD..end],
                        sequence: first + at as u64,
                        verdict: None,
                    }
                })
                .collect();
            opener.open(&mut burst);
            for (at, packet) in burst.iter().enumerate() {
                let verdict = packet.verdict.as_ref().map(IcvValid::sequence);
                prop_assert_eq!(verdict, Some(first + at as u64), "{:?}", suite);
            }
            for (plaintext, packet) in plaintexts.iter().zip(&packets) {
                let (front, rest) = plaintext.split_at(GUARD);
                let (text, back) = rest.split_at(rest.len() - GUARD);
                prop_assert!(front.iter().chain(back).all(|&byte| byte == 0xa5));
                prop_assert_eq!(text, plaintext_of(&packet.payload, text.len(), packet.next_header));
            }
        }
    }

    /// Side by side is the same as one after the other (the `cbc` crate's own encryptor).
    #[test]
    fn interleaved_cbc_is_cbc(texts in vec((any::<[u8; 16]>(), 0..12usize), 0..40), key in any::<[u8; 16]>()) {
        use aes::cipher::{Array, BlockModeEncrypt, KeyIvInit};

        let clear = |blocks: usize| (0..blocks * 16).map(|n| n as u8).collect::<Vec<u8>>();
        let mut together: Vec<_> = texts.iter().map(|&(_, blocks)| clear(blocks)).collect();
        let mut lanes: Vec<_> = texts
            .iter()
            .zip(&mut together)
            .map(|((iv, _), text)| CipherLane { iv, text })
            .collect();
        Encryptor::new(Encryption::Aes128Cbc, &key).unwrap().encrypt(&mut lanes);
        for ((iv, blocks), together) in texts.iter().zip(&together) {
            let mut alone = clear(*blocks);
            let mut encryptor = cbc::Encryptor::<aes::Aes128>::new(&key.into(), iv.into());
            encryptor.encrypt_blocks(Array::slice_as_chunks_mut(&mut alone).0);
            prop_assert_eq!(&alone, together);
        }
    }

    /// Side by side is the same as one after the other (the `ctr` crate), whatever falls into one batch; and it is its
    /// own reverse.
    #[test]
    fn interleaved_ctr_is_ctr(lengths in vec(0..300usize, 0..40), key in any::<[u8; 36]>()) {
        use ctr::cipher::{KeyIvInit, StreamCipher};

        let clear = |length: usize| (0..length).map(|n| (n * 7) as u8).collect::<Vec<u8>>();
        let ivs: Vec<[u8; 8]> = (0..lengths.len() as u64).map(u64::to_be_bytes).collect();
        let mut texts: Vec<_> = lengths.iter().map(|&length| clear(length)).collect();
        let mut lanes: Vec<_> =
            ivs.iter().zip(&mut texts).map(|(iv, text)| CipherLane { iv, text }).collect();
        Encryptor::new(Encryption::Aes256Ctr, &key).unwrap().encrypt(&mut lanes);
        for ((iv, &length), text) in ivs.iter().zip(&lengths).zip(&texts) {
            let mut alone = clear(length);
            let block = [&key[32..], iv, &1u32.to_be_bytes()].concat();
            let (key, block) = (key[..32].try_into().unwrap(), block[..].try_into().unwrap());
            ctr::Ctr32BE::<aes::Aes256>::new(key, block).apply_keystream(&mut alone);
            prop_assert_eq!(&alone, text);
        }
        let mut plaintexts: Vec<_> = lengths.iter().map(|&length| vec![0xa5; length]).collect();
        let decryptor = Decryptor::new(Encryption::Aes256Ctr, &key).unwrap();
        decryptor.decrypt(
            ivs.iter().zip(&texts).zip(&mut plaintexts).map(|((iv, text), plaintext)| (&iv[..], &text[..], &mut plaintext[..])),
        );
        for (&length, plaintext) in lengths.iter().zip(&plaintexts) {
            prop_assert_eq!(&clear(length), plaintext);
        }
    }

    /// Side by side, and cut in two anywhere, is the same as one after the other: CMAC as the `cmac` crate has it, XCBC
    /// as RFC 3566 section 4 says it, GMAC as the `aes-gcm` crate has it.
    #[test]
    fn interleaved_macs_are_macs(lengths in vec((0..100usize, 0..40usize), 0..40), key in any::<[u8; 16]>()) {
        use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};
        use aes_gcm::aead::AeadInOut;
        use hmac::Mac as _;

        let encrypted = |key: &[u8; 16], mut block: [u8; 16]| {
            aes::Aes128::new(key.into()).encrypt_block((&mut block).into());
            block
        };
        let xor = |a: [u8; 16], b: [u8; 16]| std::array::from_fn(|at| a[at] ^ b[at]);
        let xcbc = |message: &[u8]| {
            let [first, whole, padded] = [1, 2, 3].map(|number| encrypted(&key, [number; 16]));
            let (blocks, rest) = message.as_chunks::<16>();
            let (last, mask, front) = match (blocks, rest) {
                ([front @ .., last], []) => (*last, whole, front),
                _ => {
                    let mut last = [0; 16];
                    last[..rest.len()].copy_from_slice(rest);
                    last[rest.len()] = 0x80;
                    (last, padded, blocks)
                }
            };
            let state = front.iter().fold([0; 16], |state, block| encrypted(&first, xor(state, *block)));
            encrypted(&first, xor(xor(state, last), mask))
        };
        let cmac = |message: &[u8]| -> [u8; 16] {
            cmac::Cmac::<aes::Aes128>::new_from_slice(&key).unwrap().chain_update(message).finalize().into_bytes().into()
        };
        let gmac = |nonce: &[u8; 12], message: &[u8]| -> [u8; 16] {
            let gcm = aes_gcm::Aes128Gcm::new(&Array(key));
            gcm.encrypt_inout_detached(nonce.into(), message, (&mut [] as &mut [u8]).into()).unwrap().into()
        };
        let bytes = |length: usize, salt: usize| (0..length).map(|n| (n * 7 + salt) as u8).collect::<Vec<u8>>();
        let messages: Vec<_> =
            lengths.iter().enumerate().map(|(n, &(front, back))| (bytes(front, n), bytes(back, n + 9))).collect();
        let whole: Vec<_> = messages.iter().map(|(front, back)| [&front[..], back].concat()).collect();

        for (authentication, reference) in
            [(Authentication::AesXcbc, &xcbc as &dyn Fn(&[u8]) -> [u8; 16]), (Authentication::AesCmac, &cmac)]
        {
            let mut tags = vec![[0; 16]; messages.len()];
            let mac = Mac::new(authentication, &key).unwrap();
            mac.sign(messages.iter().zip(&mut tags).map(|((front, back), tag)| (&front[..], back, &mut tag[..])));
            prop_assert_eq!(&tags, &whole.iter().map(|message| reference(message)).collect::<Vec<_>>());
            let mut verdicts = Vec::new();
            mac.verify(
                messages.iter().zip(&tags).enumerate().map(|(n, ((front, back), tag))| (n, &front[..], back, &tag[..12])),
                |n, is_right| verdicts.push((n, is_right)),
            );
            prop_assert_eq!(verdicts, (0..tags.len()).map(|n| (n, true)).collect::<Vec<_>>());
        }

        let nonces: Vec<[u8; 12]> =
            (0..messages.len() as u128).map(|n| n.to_be_bytes()[4..].try_into().unwrap()).collect();
        let mut tags = vec![[0; 16]; messages.len()];
        let parts = nonces.iter().zip(&messages).map(|(nonce, (front, back))| {
            let (salt, iv) = nonce.split_at(4);
            GmacMessage { nonce: [salt, iv], front, back }
        });
        let keyed = Gmac::new(Encryption::Aes128Gmac, &key).unwrap();
        keyed.sign(parts.zip(tags.iter_mut().map(|tag| &mut tag[..])));
        prop_assert_eq!(tags, nonces.iter().zip(&whole).map(|(nonce, message)| gmac(nonce, message)).collect::<Vec<_>>());
    }

    #[test]
    fn interleaved_gcm_is_gcm(
        lengths in vec((0..300usize, 0..40usize), 0..140),
        key in any::<[u8; 32]>(),
        wrong in any::<proptest::sample::Index>(),
    ) {
        let reference = aes_gcm::Aes256Gcm::new(&key.into());
        let aead = Aead::new(Encryption::Aes256Gcm, 16, &key).unwrap();
        interleaved_is_one_by_one(&aead, &reference, 4, &lengths, wrong)?;
    }

    #[test]
    fn interleaved_ccm_is_ccm(
        lengths in vec((0..300usize, 0..40usize), 0..140),
        key in any::<[u8; 16]>(),
        wrong in any::<proptest::sample::Index>(),
        short in any::<bool>(),
    ) {
        use aes::Aes128;
        use ccm::Ccm;
        use ccm::consts::{U8, U11, U16};

        let aead = Aead::new(Encryption::Aes128Ccm, if short { 8 } else { 16 }, &key).unwrap();
        if short {
            let reference = Ccm::<Aes128, U8, U11>::new(&key.into());
            interleaved_is_one_by_one(&aead, &reference, 3, &lengths, wrong)?;
        } else {
            let reference = Ccm::<Aes128, U16, U11>::new(&key.into());
            interleaved_is_one_by_one(&aead, &reference, 3, &lengths, wrong)?;
        }
    }
}

/// Side by side is the same as one after the other (RustCrypto's crates), whatever falls into one batch; and one wrong
/// tag is nobody else's. `lengths` are of text and AAD.
fn interleaved_is_one_by_one<R: AeadInOut>(
    aead: &Aead,
    reference: &R,
    salt_length: usize,
    lengths: &[(usize, usize)],
    wrong: proptest::sample::Index,
) -> Result<(), TestCaseError> {
    let clear = |length: usize| (0..length).map(|n| (n * 7) as u8).collect::<Vec<u8>>();
    let icv_length = Tag::<R>::default().len();
    let nonces: Vec<Nonce<R>> = (0..lengths.len())
        .map(|n| {
            let mut nonce = Nonce::<R>::default();
            let end = nonce.len() - size_of::<usize>();
            nonce[end..].copy_from_slice(&n.to_be_bytes());
            nonce
        })
        .collect();
    let mut sealed: Vec<_> = lengths.iter().map(|&(text, _)| (clear(text), vec![0u8; icv_length])).collect();
    let mut lanes: Vec<_> = sealed
        .iter_mut()
        .zip(nonces.iter().zip(lengths))
        .map(|((text, icv), (nonce, &(_, aad)))| AeadSeal {
            nonce: nonce.split_at(salt_length).into(),
            aad: clear(aad),
            text,
            icv,
        })
        .collect();
    prop_assert!(aead.seal_lanes(&mut lanes));
    for ((nonce, &(length, aad)), (text, icv)) in nonces.iter().zip(lengths).zip(&sealed) {
        let mut alone = clear(length);
        let tag = reference.encrypt_inout_detached(nonce, &clear(aad), alone.as_mut_slice().into()).unwrap();
        prop_assert_eq!((&alone, &tag[..]), (text, &icv[..]));
    }

    let wrong = (!sealed.is_empty()).then(|| wrong.index(sealed.len()));
    if let Some(wrong) = wrong {
        *sealed[wrong].1.last_mut().unwrap() ^= 1;
    }
    let mut opened: Vec<_> = lengths.iter().map(|&(text, _)| vec![0xa5; text]).collect();
    let mut lanes: Vec<_> = sealed
        .iter()
        .zip(&mut opened)
        .zip(nonces.iter().zip(lengths))
        .map(|(((ciphertext, icv), plaintext), (nonce, &(_, aad)))| AeadOpen {
            nonce: nonce.split_at(salt_length).into(),
            aad: clear(aad),
            ciphertext,
            icv,
            plaintext,
            is_right: true,
        })
        .collect();
    aead.open_lanes(&mut lanes);
    let verdicts: Vec<bool> = lanes.iter().map(|lane| lane.is_right).collect();
    for (index, (verdict, plaintext)) in verdicts.into_iter().zip(opened).enumerate() {
        prop_assert_eq!(verdict, Some(index) != wrong);
        prop_assert_eq!(
            &plaintext,
            &if verdict { clear(lengths[index].0) } else { vec![0; lengths[index].0] }
        );
    }
    Ok(())
}

#[test]
fn any_flipped_bit_is_refused_and_wiped() {
    for (suite, esn) in every_suite() {
        let sequence = if esn { 0x0000_0007_0000_0009 } else { 9 };
        let opener = Opener::new(suite, &keys(suite, 1), esn).unwrap();
        let mut esp = sealed(suite, esn, sequence, &[0x45; 13]);
        let length = ciphertext_length(suite, &esp);
        assert_eq!(opened(&opener, &esp, sequence, length).0, Some(sequence), "{suite:?}");
        for bit in 0..esp.len() * 8 {
            esp[bit / 8] ^= 1 << (bit % 8);
            let why = format!("{suite:?} esn {esn} bit {bit}");
            assert_refused(opened(&opener, &esp, sequence, length), &why);
            // The low word on the wire is where the number comes from: it follows the flip.
            let low = u32::from_be_bytes(esp[4..8].try_into().unwrap());
            let inferred = sequence & !u64::from(u32::MAX) | u64::from(low);
            assert_refused(opened(&opener, &esp, inferred, length), &why);
            esp[bit / 8] ^= 1 << (bit % 8);
        }
        for bit in 32..64 {
            assert_refused(opened(&opener, &esp, sequence ^ 1 << bit, length), "the high word");
        }
    }
}

#[test]
fn other_keys_and_the_other_kind_of_number_are_refused() {
    for (suite, esn) in every_suite() {
        let esp = sealed(suite, esn, 9, b"payload");
        let length = ciphertext_length(suite, &esp);
        let other_keys = Opener::new(suite, &keys(suite, 2 << 2), esn).unwrap();
        assert_refused(opened(&other_keys, &esp, 9, length), "other keys");
        let other_esn = Opener::new(suite, &keys(suite, 1), !esn).unwrap();
        assert_refused(opened(&other_esn, &esp, 9, length), "ESN differs");
    }
}

#[test]
fn packets_of_any_length_are_taken_without_panic() {
    for (suite, esn) in every_suite() {
        let opener = Opener::new(suite, &keys(suite, 1), esn).unwrap();
        let esp = sealed(suite, esn, 9, &[0x45; 40]);
        let length = ciphertext_length(suite, &esp);
        for cut in 0..esp.len() {
            for plaintext_length in [0, length, cut] {
                assert_refused(opened(&opener, &esp[..cut], 9, plaintext_length), "cut short");
            }
        }
        for plaintext_length in (0..2 * length).filter(|&other| other != length) {
            assert_refused(opened(&opener, &esp, 9, plaintext_length), "no room, or too much");
        }
        let longer = [&esp[..], &[0; 64]].concat();
        for end in esp.len() + 1..longer.len() {
            let length = length + end - esp.len();
            assert_refused(opened(&opener, &longer[..end], 9, length), "longer");
        }
    }
}

#[test]
fn one_forgery_in_a_burst_harms_no_other() {
    for (suite, esn) in every_suite() {
        let opener = Opener::new(suite, &keys(suite, 1), esn).unwrap();
        let packets: Vec<Vec<u8>> = (1..=20)
            .map(|sequence| {
                let mut esp = sealed(suite, esn, sequence, &[sequence as u8; 50]);
                if sequence % 3 == 0 {
                    *esp.last_mut().unwrap() ^= 0x10;
                }
                esp
            })
            .collect();
        let length = ciphertext_length(suite, &packets[0]);
        let mut plaintexts = vec![vec![0xa5; length]; packets.len()];
        let mut burst: Vec<Open<'_>> = (1..)
            .zip(packets.iter().zip(&mut plaintexts))
            .map(|(sequence, (esp, plaintext))| Open { esp, plaintext, sequence, verdict: None })
            .collect();
        opener.open(&mut burst);
        // Again, as if the burst were used anew: an old verdict does not stay.
        burst[0].sequence = 2;
        opener.open(&mut burst);
        for (sequence, Open { verdict, plaintext, .. }) in (1..).zip(&burst) {
            let forged = sequence % 3 == 0 || sequence == 1;
            assert_eq!(verdict.as_ref().map(IcvValid::sequence), (!forged).then_some(sequence));
            let expected =
                if forged { vec![0; length] } else { plaintext_of(&[sequence as u8; 50], length, 4) };
            assert_eq!(**plaintext, expected);
        }
    }
}

#[test]
fn weak_keys_open_and_seal_nothing() {
    let suite = Suite::new(Encryption::Des, Authentication::Sha256, None).unwrap();
    let key = |bytes: &[u8]| Key::new(Zeroizing::new(bytes.into()));
    let weak = KeyMaterial { encryption: key(&[1; 8]), authentication: key(&[1; 32]) };
    assert_eq!(Sealer::new(suite, &weak, false).err(), Some(KeyError::Weak));
    assert_eq!(Opener::new(suite, &weak, false).err(), Some(KeyError::Weak));
}

#[test]
#[should_panic(expected = "as long as its payload makes it")]
fn a_burst_is_not_sealed_twice() {
    let suite = Suite::new(Encryption::Aes128Gcm, Authentication::None, None).unwrap();
    let sealer = Sealer::new(suite, &keys(suite, 1), false).unwrap();
    let mut esp = vec![0; esp_length(suite, 0)];
    let mut burst = [Seal { esp: &mut esp, payload: &[], next_header: 59, sequence: fresh(1) }];
    sealer.seal(Spi(256), &mut burst, &mut IvSource::from_seed([0; 32]));
    sealer.seal(Spi(256), &mut burst, &mut IvSource::from_seed([0; 32]));
}

#[test]
fn lengths_that_a_payload_cannot_have_are_the_callers_fault() {
    for (suite, esn) in every_suite() {
        let sealer = Sealer::new(suite, &keys(suite, 1), esn).unwrap();
        let seals = |length: usize, sequence| {
            let attempt = std::panic::AssertUnwindSafe(|| {
                let mut esp = vec![0; length];
                let packet =
                    Seal { esp: &mut esp, payload: &[7; 30], next_header: 4, sequence: fresh(sequence) };
                sealer.seal(Spi(256), &mut [packet], &mut IvSource::from_seed([0; 32]));
            });
            std::panic::catch_unwind(attempt).is_ok()
        };
        let minimal = esp_length(suite, 30);
        let alignment = usize::from(suite.alignment());
        let most = minimal + (255 / alignment - 1) * alignment;
        for length in [0, minimal - alignment, minimal - 1, minimal + 1, minimal + alignment / 2, most + 256]
        {
            assert!(!seals(length, 1), "{suite:?} {length}");
        }
        for length in [minimal, minimal + alignment, most] {
            assert!(seals(length, 1), "{suite:?} {length}");
        }
        // Numbers do not cycle (RFC 4303 section 3.3.3).
        assert!(seals(minimal, u32::MAX.into()));
        assert_eq!(seals(minimal, 1 << 32), esn);
    }
}

/// What the expanded keys consist of wipes itself when dropped; this does not compile when a crate's
/// `zeroize` feature is off.
#[test]
fn expanded_keys_are_wiped() {
    fn wiped<T: ZeroizeOnDrop>() {}
    wiped::<aes::Aes128Enc>();
    wiped::<aes::Aes128Dec>();
    wiped::<chacha20poly1305::ChaCha20Poly1305>();
    wiped::<des::Des>();
    wiped::<des::TdesEde3>();
    wiped::<md5::Md5>();
    wiped::<sha1::Sha1>();
    wiped::<sha2::Sha256>();
    wiped::<sha2::Sha512>();
    wiped::<Zeroizing<Box<[u8]>>>();
}

/// A nonce given by hand is a nonce given twice: nothing outside `crypto` reaches below `Sealer`.
#[test]
fn primitives_stay_inside() {
    fn sources(folder: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    assert!(found.contains(&root.join("crypto/primitive.rs")));
    for path in found.iter().filter(|path| !path.starts_with(root.join("crypto"))) {
        let source = std::fs::read_to_string(path).unwrap();
        assert!(!source.contains("primitive"), "{} uses crypto::primitive", path.display());
    }
}
