//! Published vectors through the primitives that packets run through, and whole ESP packets through
//! `Sealer` and `Opener`.

use adit_engine::crypto::key::{Key, KeyMaterial};
use adit_engine::crypto::primitive::{Aead, CipherLane, Decryptor, Encryptor, Gmac, GmacMessage, Mac};
use adit_engine::crypto::sequence::SequenceCounter;
use adit_engine::crypto::{Authentication, Encryption, IvSource, Open, Opener, Seal, Sealer, Suite};
use adit_engine::wire::Spi;
use adit_tests::vectors::{Vectors, bytes, text};
use serde_json::Value;
use zeroize::Zeroizing;

/// Both directions; the case must hold in each.
fn check_cipher(algorithm: Encryption, key: &[u8], iv: &[u8], plaintext: &[u8], ciphertext: &[u8]) {
    let mut buffer = plaintext.to_vec();
    let encryptor = Encryptor::new(algorithm, key).expect("the key is as long as the algorithm's");
    encryptor.encrypt(&mut [CipherLane { iv, text: &mut buffer }]);
    assert_eq!(buffer, ciphertext, "{algorithm} encrypts");
    buffer.fill(0xa5);
    let decryptor = Decryptor::new(algorithm, key).expect("the key is as long as the algorithm's");
    decryptor.decrypt([(iv, ciphertext, &mut buffer[..])].into_iter());
    assert_eq!(buffer, plaintext, "{algorithm} decrypts");
}

/// What a case says of a text and its tag.
struct Tagged<'c> {
    nonce: [&'c [u8]; 2],
    aad: &'c [u8],
    /// `None` when the tag is wrong: then nothing may be left of the plaintext.
    plaintext: Option<&'c [u8]>,
    ciphertext: &'c [u8],
    icv: &'c [u8],
}

impl Tagged<'_> {
    fn check(
        &self,
        seal: impl Fn([&[u8]; 2], &[u8], &mut [u8], &mut [u8]) -> bool,
        open: impl Fn([&[u8]; 2], &[u8], &[u8], &[u8], &mut [u8]) -> bool,
    ) {
        let Self { nonce, aad, plaintext, ciphertext, icv } = *self;
        let mut buffer = vec![0xa5; ciphertext.len()];
        let is_right = open(nonce, aad, ciphertext, icv, &mut buffer);
        assert_eq!(is_right, plaintext.is_some());
        assert_eq!(buffer, plaintext.unwrap_or(&vec![0; ciphertext.len()]));
        if let Some(plaintext) = plaintext {
            let mut buffer = plaintext.to_vec();
            let mut made = vec![0xa5; icv.len()];
            assert!(seal(nonce, aad, &mut buffer, &mut made));
            assert_eq!((&buffer[..], &made[..]), (ciphertext, icv));
            for bit in 0..icv.len() * 8 {
                made[bit / 8] ^= 1 << (bit % 8);
                buffer.fill(0xa5);
                assert!(!open(nonce, aad, ciphertext, &made, &mut buffer), "bit {bit} of the ICV");
                assert!(buffer.iter().all(|&byte| byte == 0));
                made[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    fn check_aead(&self, algorithm: Encryption, key: &[u8]) {
        let aead = Aead::new(algorithm, self.icv.len() as u8, key).expect("lengths of the algorithm");
        self.check(
            |nonce, aad, text, icv| aead.seal(nonce, aad, text, icv),
            |nonce, aad, ciphertext, icv, plaintext| aead.open(nonce, aad, ciphertext, icv, plaintext),
        );
    }
}

fn gcm(key: &[u8]) -> Encryption {
    match key.len() {
        16 => Encryption::Aes128Gcm,
        24 => Encryption::Aes192Gcm,
        32 => Encryption::Aes256Gcm,
        other => panic!("AES has no key of {other} bytes"),
    }
}

fn ccm(key: &[u8]) -> Encryption {
    match key.len() {
        16 => Encryption::Aes128Ccm,
        24 => Encryption::Aes192Ccm,
        32 => Encryption::Aes256Ccm,
        other => panic!("AES has no key of {other} bytes"),
    }
}

fn gmac(key: &[u8]) -> Encryption {
    match key.len() {
        16 => Encryption::Aes128Gmac,
        24 => Encryption::Aes192Gmac,
        32 => Encryption::Aes256Gmac,
        other => panic!("AES has no key of {other} bytes"),
    }
}

fn aes_ctr(key: &[u8]) -> Encryption {
    match key.len() {
        16 => Encryption::Aes128Ctr,
        24 => Encryption::Aes192Ctr,
        32 => Encryption::Aes256Ctr,
        other => panic!("AES has no key of {other} bytes"),
    }
}

fn aes_cbc(key: &[u8]) -> Encryption {
    match key.len() {
        16 => Encryption::Aes128Cbc,
        24 => Encryption::Aes192Cbc,
        32 => Encryption::Aes256Cbc,
        other => panic!("AES has no key of {other} bytes"),
    }
}

/// Signs, and verifies: `icv` is what the first bytes of the tag must be, or must not be.
fn check_mac(algorithm: &str, key: &[u8], message: &[u8], icv: &[u8], is_right: bool) {
    let mac = Mac::new(algorithm.parse().unwrap(), key).expect("a MAC, and a key that it takes");
    // Cut anywhere, as before the high word of an ESN.
    for cut in [0, message.len() / 2, message.len()] {
        let (front, back) = message.split_at(cut);
        let mut made = vec![0xa5; icv.len()];
        mac.sign([(front, back, &mut made[..])].into_iter());
        assert_eq!(made == icv, is_right, "{algorithm} signs");
        let verify = |icv: &[u8]| {
            let mut verdict = None;
            mac.verify([((), front, back, icv)].into_iter(), |(), is_right| verdict = Some(is_right));
            verdict.expect("one verdict a message")
        };
        assert_eq!(verify(icv), is_right, "{algorithm} verifies");
        assert!(verify(&made));
        for bit in 0..made.len() * 8 {
            made[bit / 8] ^= 1 << (bit % 8);
            assert!(!verify(&made), "bit {bit} of the ICV");
            made[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(!verify(&[]), "no ICV at all");
        assert!(!verify(&[made.clone(), vec![0; 64]].concat()), "longer than a tag");
    }
}

/// As [`check_mac`], with a nonce: 4 bytes of salt, 8 of IV.
fn check_gmac(key: &[u8], nonce: &[u8], message: &[u8], icv: &[u8], is_right: bool) {
    let gmac = Gmac::new(gmac(key), key).expect("a key of AES");
    let nonce = [&nonce[..4], &nonce[4..]];
    // Cut anywhere, as behind the sequence number.
    for cut in [0, message.len() / 2, message.len()] {
        let (front, back) = message.split_at(cut);
        let parts = || GmacMessage { nonce, front, back };
        let mut made = [0xa5; 16];
        gmac.sign([(parts(), &mut made[..])].into_iter());
        assert_eq!(made == icv, is_right, "signs");
        let verify = |icv: &[u8]| {
            let mut verdict = None;
            gmac.verify([((), parts(), icv)].into_iter(), |(), is_right| verdict = Some(is_right));
            verdict.expect("one verdict a message")
        };
        assert_eq!(verify(icv), is_right, "verifies");
        assert!(verify(&made));
        for bit in 0..made.len() * 8 {
            made[bit / 8] ^= 1 << (bit % 8);
            assert!(!verify(&made), "bit {bit} of the ICV");
            made[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(!verify(&[]) && !verify(&made[..12]), "shorter than a tag");
        let other = GmacMessage { nonce: [nonce[0], &nonce[1][1..]], front, back };
        gmac.verify([((), other, &made[..])].into_iter(), |(), is_right| assert!(!is_right, "a short IV"));
    }
}

fn key(bytes: Vec<u8>) -> Key {
    Key::new(Zeroizing::new(bytes.into()))
}

/// Opens one packet; the plaintext with its trailer, if the ICV is right.
fn open(opener: &Opener, suite: Suite, esp: &[u8], sequence: u64) -> Option<Vec<u8>> {
    let length = esp.len() - 8 - usize::from(suite.iv_length()) - usize::from(suite.icv_length());
    let mut plaintext = vec![0xa5; length];
    let mut burst = [Open { esp, plaintext: &mut plaintext, sequence, verdict: None }];
    opener.open(&mut burst);
    let [Open { verdict, .. }] = burst;
    if verdict.is_none() {
        assert!(plaintext.iter().all(|&byte| byte == 0), "not wiped");
    }
    verdict.map(|verdict| {
        assert_eq!(verdict.sequence(), sequence);
        plaintext
    })
}

/// 64 bits with ESN, 32 without.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// A whole packet through `Opener`, then with each part of it wrong.
fn check_packet(suite: Suite, keys: &KeyMaterial, esn: bool, esp: &[u8], sequence: u64, plaintext: &[u8]) {
    let opener = Opener::new(suite, keys, esn).unwrap();
    assert_eq!(open(&opener, suite, esp, sequence).as_deref(), Some(plaintext));
    let mut forged = esp.to_vec();
    for at in 0..esp.len() {
        forged[at] ^= 0x40;
        let low = number(&forged[4..8]);
        let sequence = sequence & !u64::from(u32::MAX) | low;
        assert_eq!(open(&opener, suite, &forged, sequence), None, "byte {at}");
        forged[at] ^= 0x40;
    }
    let other = sequence ^ 1 << 32;
    assert_eq!(open(&opener, suite, esp, other), None, "another high word");
}

#[test]
fn rfc3602_aes_cbc() {
    let mut vectors = Vectors::load("rfc3602_aes_cbc.json");
    for case in vectors.take_list("raw_cbc") {
        check_cipher(
            Encryption::Aes128Cbc,
            &bytes(&case, "key"),
            &bytes(&case, "iv"),
            &bytes(&case, "plaintext"),
            &bytes(&case, "ciphertext"),
        );
        vectors.ran();
    }
    // These packets carry no ICV, so no SA of ours can: their bytes are put together here.
    for case in vectors.take_list("esp_packets") {
        let trailer =
            [case["pad_length"].as_u64().unwrap() as u8, case["next_header"].as_u64().unwrap() as u8];
        let plaintext = [bytes(&case, "payload"), bytes(&case, "pad"), trailer.to_vec()].concat();
        let (iv, esp) = (bytes(&case, "iv"), bytes(&case, "esp"));
        let clear = [bytes(&case, "spi"), bytes(&case, "seq"), iv.clone()].concat();
        let ciphertext = esp.strip_prefix(&clear[..]).expect("SPI, sequence number, IV");
        check_cipher(Encryption::Aes128Cbc, &bytes(&case, "key"), &iv, &plaintext, ciphertext);
        vectors.ran();
    }
    vectors.finish();
}

#[test]
fn mcgrew_gcm_esp() {
    let mut vectors = Vectors::load("mcgrew_gcm_esp.json");
    for case in vectors.take_list("packets") {
        let (aes_key, salt, iv) = (bytes(&case, "key"), bytes(&case, "salt"), bytes(&case, "iv"));
        let plaintext = bytes(&case, "plaintext_with_trailer");
        let tagged = Tagged {
            nonce: [&salt, &iv],
            aad: &bytes(&case, "aad"),
            plaintext: Some(&plaintext),
            ciphertext: &bytes(&case, "ciphertext"),
            icv: &bytes(&case, "icv"),
        };
        tagged.check_aead(gcm(&aes_key), &aes_key);
        let suite = Suite::new(gcm(&aes_key), Authentication::None, None).unwrap();
        let esn = case["esn"].as_bool().unwrap();
        let keys = KeyMaterial { encryption: key([aes_key, salt].concat()), authentication: key(vec![]) };
        let sequence = number(&bytes(&case, "seq"));
        check_packet(suite, &keys, esn, &bytes(&case, "esp"), sequence, &plaintext);
        vectors.ran();
    }
    vectors.finish();
}

/// CTR, XCBC-MAC and CMAC as their RFCs have them.
#[test]
fn rfc3686_3566_4493_aes() {
    let mut vectors = Vectors::load("rfc3686_3566_4493_aes.json");
    for case in vectors.take_list("ctr") {
        let aes_key = bytes(&case, "key");
        check_cipher(
            aes_ctr(&aes_key),
            &[&aes_key[..], &bytes(&case, "nonce")].concat(),
            &bytes(&case, "iv"),
            &bytes(&case, "plaintext"),
            &bytes(&case, "ciphertext"),
        );
        vectors.ran();
    }
    for case in vectors.take_list("mac") {
        let whole = bytes(&case, "mac");
        for icv in [&whole[..], &whole[..12]] {
            check_mac(text(&case, "algorithm"), &bytes(&case, "key"), &bytes(&case, "message"), icv, true);
        }
        vectors.ran();
    }
    vectors.finish();
}

#[test]
fn rfc7634_chachapoly_esp() {
    let mut vectors = Vectors::load("rfc7634_chachapoly_esp.json");
    for case in vectors.take_list("packets") {
        let (chacha_key, salt, iv) = (bytes(&case, "key"), bytes(&case, "salt"), bytes(&case, "iv"));
        let (plaintext, both) = (bytes(&case, "plaintext_with_trailer"), bytes(&case, "ciphertext_icv"));
        let (ciphertext, icv) = both.split_at(plaintext.len());
        let aad = bytes(&case, "aad");
        let tagged = Tagged { nonce: [&salt, &iv], aad: &aad, plaintext: Some(&plaintext), ciphertext, icv };
        tagged.check_aead(Encryption::ChaCha20Poly1305, &chacha_key);
        let suite = Suite::new(Encryption::ChaCha20Poly1305, Authentication::None, None).unwrap();
        let keys = KeyMaterial { encryption: key([chacha_key, salt].concat()), authentication: key(vec![]) };
        let esp = [&aad[..], &iv, &both].concat();
        check_packet(suite, &keys, false, &esp, number(&bytes(&case, "seq")), &plaintext);
        vectors.ran();
    }
    vectors.finish();
}

#[test]
fn linux_testmgr_ipsec() {
    let mut vectors = Vectors::load("linux_testmgr_ipsec.json");
    for (group, cases) in vectors.take_groups() {
        for case in &cases {
            match group.as_str() {
                "gcm_rfc4106" | "ccm_rfc4309" => linux_aead(case, group == "ccm_rfc4309"),
                "cbc_aes" | "cbc_des" | "cbc_des3" => {
                    let cipher_key = bytes(case, "key");
                    check_cipher(
                        linux_cipher(&group, &cipher_key),
                        &cipher_key,
                        &bytes(case, "iv"),
                        &bytes(case, "plaintext"),
                        &bytes(case, "ciphertext"),
                    );
                }
                authenc if authenc.starts_with("authenc_") => linux_authenc(case),
                other => panic!("unknown group {other}"),
            }
            vectors.ran();
        }
    }
    vectors.finish();
}

fn linux_cipher(name: &str, key: &[u8]) -> Encryption {
    match name {
        "null" => Encryption::Null,
        "des-cbc" | "cbc_des" => Encryption::Des,
        "des3-cbc" | "cbc_des3" => Encryption::TripleDes,
        "aes-cbc" | "cbc_aes" => aes_cbc(key),
        other => panic!("unknown cipher {other}"),
    }
}

fn linux_aead(case: &Value, is_ccm: bool) {
    let (aes_key, salt, iv) = (bytes(case, "key"), bytes(case, "salt"), bytes(case, "iv"));
    let plaintext = bytes(case, "plaintext");
    let tagged = Tagged {
        nonce: [&salt, &iv],
        aad: &bytes(case, "aad"),
        plaintext: Some(&plaintext),
        ciphertext: &bytes(case, "ciphertext"),
        icv: &bytes(case, "icv"),
    };
    let algorithm = if is_ccm { ccm(&aes_key) } else { gcm(&aes_key) };
    tagged.check_aead(algorithm, &aes_key);
    let esp = bytes(case, "esp_packet");
    // The kernel's generic texts need no alignment; those that are ESP packets do.
    if plaintext.len().is_multiple_of(4) {
        let suite = Suite::new(algorithm, Authentication::None, None).unwrap();
        let keys = KeyMaterial { encryption: key([aes_key, salt].concat()), authentication: key(vec![]) };
        let esn = case["esn"].as_bool().unwrap();
        check_packet(suite, &keys, esn, &esp, number(&bytes(case, "seq")), &plaintext);
    }
}

/// Encrypt, then MAC; the kernel's template signs what it is given, which is not always SPI and number.
fn linux_authenc(case: &Value) {
    let (cipher_key, ciphertext) = (bytes(case, "enc_key"), bytes(case, "ciphertext"));
    let algorithm = linux_cipher(text(case, "cipher"), &cipher_key);
    check_cipher(algorithm, &cipher_key, &bytes(case, "iv"), &bytes(case, "plaintext"), &ciphertext);
    let hash = text(case, "auth").strip_prefix("hmac-").unwrap();
    let message = [bytes(case, "assoc_prefix"), ciphertext].concat();
    let full = bytes(case, "icv_full");
    let (auth_key, authentication) = (bytes(case, "auth_key"), hash.parse().unwrap());
    let suite = Suite::new(Encryption::Null, authentication, None).unwrap();
    assert_eq!(auth_key.len(), suite.authentication_key_length());
    for length in [full.len(), suite.icv_length().into()] {
        check_mac(hash, &auth_key, &message, &full[..length], true);
    }
}

#[test]
fn hmac_rfc2202_4231_4868() {
    let mut vectors = Vectors::load("hmac_rfc2202_4231_4868.json");
    for case in vectors.take_list("vectors") {
        let (hash, full, icv) = (text(&case, "hash"), bytes(&case, "mac_full"), bytes(&case, "icv"));
        let suite = Suite::new(Encryption::Null, hash.parse().unwrap(), None).unwrap();
        // RFC 4231's case 5 gives its own cut.
        assert_eq!(full[..icv.len()], icv);
        assert_eq!(icv.len(), usize::from(suite.icv_length()));
        for icv in [full, icv] {
            check_mac(hash, &bytes(&case, "key"), &bytes(&case, "msg"), &icv, true);
        }
        vectors.ran();
    }
    for case in vectors.take_list("rfc4868_auth_vectors") {
        let hash = match text(&case, "alg") {
            "HMAC-SHA256-128" => "sha256",
            "HMAC-SHA384-192" => "sha384",
            "HMAC-SHA512-256" => "sha512",
            other => panic!("unknown algorithm {other}"),
        };
        let (mac_key, icv) = (bytes(&case, "key"), bytes(&case, "icv"));
        // These are keys and ICVs as ESP has them (RFC 4868 section 2.7.2).
        let suite = Suite::new(Encryption::Null, hash.parse().unwrap(), None).unwrap();
        assert_eq!(mac_key.len(), suite.authentication_key_length());
        assert_eq!(icv.len(), usize::from(suite.icv_length()));
        check_mac(hash, &mac_key, &bytes(&case, "msg"), &icv, true);
        vectors.ran();
    }
    vectors.finish();
}

#[test]
fn nist_cavp_subset() {
    let mut vectors = Vectors::load("nist_cavp_subset.json");
    for (group, cases) in vectors.take_groups() {
        for case in &cases {
            match group.split('_').next().unwrap() {
                "aes128" | "aes192" | "aes256" | "tdes" => nist_cbc(case, &group),
                family if family.starts_with("gcm") => nist_gcm(case),
                family if family.starts_with("ccm") => nist_ccm(case),
                other => panic!("unknown group {other}"),
            }
            vectors.ran();
        }
    }
    vectors.finish();
}

fn nist_cbc(case: &Value, group: &str) {
    let (cipher_key, iv) = (bytes(case, "key"), bytes(case, "iv"));
    let (plaintext, ciphertext) = (bytes(case, "pt"), bytes(case, "ct"));
    let algorithm = if group.starts_with("tdes") { Encryption::TripleDes } else { aes_cbc(&cipher_key) };
    check_cipher(algorithm, &cipher_key, &iv, &plaintext, &ciphertext);
    if group == "tdes_cbc_mmt1" {
        // Keying option 3: three equal keys make DES, and no SA of ours may have them.
        assert_eq!(cipher_key[..8], cipher_key[8..16]);
        check_cipher(Encryption::Des, &cipher_key[..8], &iv, &plaintext, &ciphertext);
        let suite = Suite::new(Encryption::TripleDes, Authentication::Sha256, None).unwrap();
        let keys = KeyMaterial { encryption: key(cipher_key), authentication: key(vec![7; 32]) };
        assert!(Sealer::new(suite, &keys, false).is_err());
    }
}

fn nist_gcm(case: &Value) {
    let (iv, plaintext, aes_key) = (bytes(case, "iv"), bytes(case, "pt"), bytes(case, "key"));
    let is_right = !case["fail"].as_bool().unwrap();
    let tagged = Tagged {
        nonce: [&iv[..4], &iv[4..]],
        aad: &bytes(case, "aad"),
        plaintext: is_right.then_some(&plaintext),
        ciphertext: &bytes(case, "ct"),
        icv: &bytes(case, "tag"),
    };
    tagged.check_aead(gcm(&aes_key), &aes_key);
}

fn nist_ccm(case: &Value) {
    let (nonce, both) = (bytes(case, "nonce"), bytes(case, "ct_tag"));
    let (ciphertext, icv) = both.split_at(both.len() - case["tag_len"].as_u64().unwrap() as usize);
    let tagged = Tagged {
        nonce: [&nonce[..3], &nonce[3..]],
        aad: &bytes(case, "aad"),
        plaintext: Some(&bytes(case, "pt")),
        ciphertext,
        icv,
    };
    // ESP has nonces of 11 bytes; here are others too.
    let key = bytes(case, "key");
    tagged.check_aead(ccm(&key), &key);
}

#[test]
fn wycheproof_subset() {
    let mut vectors = Vectors::load("wycheproof_subset.json");
    for (group, cases) in vectors.take_groups() {
        for case in &cases {
            let is_right = match text(case, "result") {
                "valid" => true,
                "invalid" => false,
                other => panic!("neither right nor wrong: {other}"),
            };
            let (case_key, message, tag) = (bytes(case, "key"), bytes(case, "msg"), bytes(case, "tag"));
            match group.as_str() {
                "aes_gmac_test" => check_gmac(&case_key, &bytes(case, "iv"), &message, &tag, is_right),
                "aes_gcm_test" | "aes_ccm_test" => {
                    let iv = bytes(case, "iv");
                    let split = iv.len() - 8;
                    let tagged = Tagged {
                        nonce: [&iv[..split], &iv[split..]],
                        aad: &bytes(case, "aad"),
                        plaintext: is_right.then_some(&message),
                        ciphertext: &bytes(case, "ct"),
                        icv: &tag,
                    };
                    let algorithm = if group == "aes_ccm_test" { ccm(&case_key) } else { gcm(&case_key) };
                    tagged.check_aead(algorithm, &case_key);
                }
                hmac => {
                    let hash = hmac.strip_prefix("hmac_").and_then(|name| name.strip_suffix("_test"));
                    check_mac(hash.expect("an HMAC group"), &case_key, &message, &tag, is_right);
                }
            }
            vectors.ran();
        }
    }
    vectors.finish();
}

/// Every suite, ICV length, ESN: whole bursts must come out as OpenSSL and the RFCs' layouts make them.
#[test]
fn openssl_esp_seal() {
    let mut vectors = Vectors::load("openssl_esp_seal.json");
    let mut suites = std::collections::HashSet::new();
    for case in vectors.take_list("bursts") {
        let (encryption, authentication) = (text(&case, "encryption"), text(&case, "authentication"));
        let icv_length = case["icv_length"].as_u64().unwrap() as u8;
        let suite =
            Suite::new(encryption.parse().unwrap(), authentication.parse().unwrap(), Some(icv_length))
                .unwrap();
        let esn = case["esn"].as_bool().unwrap();
        suites.insert((suite, esn));
        let keys = KeyMaterial {
            encryption: key(bytes(&case, "encryption_key")),
            authentication: key(bytes(&case, "authentication_key")),
        };
        let first = case["sequence"].as_u64().unwrap();
        let packets = case["packets"].as_array().unwrap();
        let payloads: Vec<_> = packets.iter().map(|packet| bytes(packet, "payload")).collect();
        let next_headers: Vec<_> =
            packets.iter().map(|packet| packet["next_header"].as_u64().unwrap() as u8).collect();
        let expected: Vec<_> = packets.iter().map(|packet| bytes(packet, "esp")).collect();
        let mut frames: Vec<_> = expected.iter().map(|esp| vec![0xa5; esp.len()]).collect();
        let numbers =
            SequenceCounter::starting_after(first - 1).take(packets.len() as u64, u64::MAX).unwrap();
        let mut burst: Vec<_> = numbers
            .zip(&mut frames)
            .zip(payloads.iter().zip(&next_headers))
            .map(|((sequence, esp), (payload, &next_header))| Seal { esp, payload, next_header, sequence })
            .collect();
        let mut ivs = IvSource::from_seed(bytes(&case, "iv_seed").try_into().unwrap());
        let sealer = Sealer::new(suite, &keys, esn).unwrap();
        sealer.seal(Spi(case["spi"].as_u64().unwrap() as u32), &mut burst, &mut ivs);
        assert_eq!(frames, expected, "{suite:?} esn {esn}");

        let opener = Opener::new(suite, &keys, esn).unwrap();
        for (at, (esp, payload)) in expected.iter().zip(&payloads).enumerate() {
            let plaintext = open(&opener, suite, esp, first + at as u64).expect("its ICV is right");
            assert!(plaintext.starts_with(payload) && plaintext.ends_with(&[next_headers[at]]));
            vectors.ran();
        }
    }
    assert!(Suite::all().all(|suite| suites.contains(&(suite, false)) && suites.contains(&(suite, true))));
    vectors.finish();
}

/// Packets whose bytes scapy agrees with, IVs of their own choosing: opened whole.
#[test]
fn oracle_esp_packets() {
    let mut vectors = Vectors::load("oracle_esp_packets.json");
    for case in vectors.take_list("packets") {
        let cipher: Encryption = match text(&case, "cipher") {
            "3des-cbc" => Encryption::TripleDes,
            "des-cbc" => Encryption::Des,
            name => name.parse().unwrap(),
        };
        let hash = match case["auth"].as_str() {
            None => Authentication::None,
            Some(name) => name.split('-').nth(1).unwrap().parse().unwrap(),
        };
        let icv_length = case["icv_len"].as_u64().unwrap() as u8;
        let suite = Suite::new(cipher, hash, Some(icv_length)).unwrap();
        let esn = case["esn"].as_bool().unwrap();
        let keys = KeyMaterial {
            encryption: key([bytes(&case, "enc_key"), bytes(&case, "salt")].concat()),
            authentication: key(bytes(&case, "auth_key")),
        };
        let sequence = case["seq_hi"].as_u64().unwrap_or(0) << 32 | case["seq_lo"].as_u64().unwrap();
        let inner = bytes(&case, "inner_packet");
        let payload = match (text(&case, "mode"), inner[0] >> 4) {
            ("tunnel", _) => &inner[..],
            (_, 4) => &inner[20..],
            (_, _) => &inner[40..],
        };
        let pad_length = case["pad_len"].as_u64().unwrap() as u8;
        let padding: Vec<u8> = (1..=pad_length).collect();
        let trailer = [pad_length, case["next_header"].as_u64().unwrap() as u8];
        let plaintext = [payload, &padding, &trailer].concat();
        check_packet(suite, &keys, esn, &bytes(&case, "esp"), sequence, &plaintext);
        vectors.ran();
    }
    vectors.finish();
}

/// No file without its count, none counted that is not there.
#[test]
fn the_index_names_the_files() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors");
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".json") && name != "INDEX.json" {
            assert!(adit_tests::vectors::count(&name) > 0, "{name}");
        }
    }
}
