//! Known answers, asked at every start: a build, a CPU or a memory that computes something else must not
//! send a packet under any key.

use zeroize::Zeroizing;

use super::key::{Key, KeyMaterial};
use super::primitive::{Aead, CipherLane, Decryptor, Encryptor, Gmac, GmacMessage, Mac};
use super::sequence::SequenceCounter;
use super::{Authentication, Encryption, IvSource, Open, Opener, Seal, Sealer, Suite};
use crate::wire::Spi;

/// Bytes in hexadecimal.
type Hex = &'static str;

struct CipherAnswer {
    algorithm: Encryption,
    /// For CTR with its salt.
    key: Hex,
    iv: Hex,
    plaintext: Hex,
    ciphertext: Hex,
}

struct MacAnswer {
    algorithm: Authentication,
    key: Hex,
    message: Hex,
    icv: Hex,
}

struct AeadAnswer {
    algorithm: Encryption,
    key: Hex,
    salt: Hex,
    iv: Hex,
    aad: Hex,
    plaintext: Hex,
    ciphertext: Hex,
    /// One for each length.
    icvs: &'static [Hex],
}

struct GmacAnswer {
    algorithm: Encryption,
    key: Hex,
    salt: Hex,
    iv: Hex,
    message: Hex,
    icv: Hex,
}

const CIPHERS: [CipherAnswer; 9] = [
    // RFC 2410: no key, no IV, nothing changes.
    CipherAnswer {
        algorithm: Encryption::Null,
        key: "",
        iv: "",
        plaintext: "4e6f77206973207468652074696d6520",
        ciphertext: "4e6f77206973207468652074696d6520",
    },
    // FIPS 81, table C1.
    CipherAnswer {
        algorithm: Encryption::Des,
        key: "0123456789abcdef",
        iv: "1234567890abcdef",
        plaintext: "4e6f77206973207468652074696d6520666f7220616c6c20",
        ciphertext: "e5c7cdde872bf27c43e934008c389c0f683788499a7c05f6",
    },
    // NIST CAVP, TCBCMMT3, encrypt, count 1.
    CipherAnswer {
        algorithm: Encryption::TripleDes,
        key: "a49d7564199e97cb529d2c9d97bf2f98d35edf57ba1f7358",
        iv: "c2e999cb6249023c",
        plaintext: "c689aee38a301bb316da75db36f110b5",
        ciphertext: "e9afaba5ec75ea1bbe65506655bb4ecb",
    },
    // RFC 3602 section 4, case 2.
    CipherAnswer {
        algorithm: Encryption::Aes128Cbc,
        key: "c286696d887c9aa0611bbb3e2025a45a",
        iv: "562e17996d093d28ddb3ba695a2e6f58",
        plaintext: "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
        ciphertext: "d296cd94c2cccf8a3a863028b5e1dc0a7586602d253cfff91b8266bea6d61ab1",
    },
    // NIST CAVP, CBCMMT192, encrypt, count 1.
    CipherAnswer {
        algorithm: Encryption::Aes192Cbc,
        key: "eab3b19c581aa873e1981c83ab8d83bbf8025111fb2e6b21",
        iv: "f3d6667e8d4d791e60f7505ba383eb05",
        plaintext: "9d4e4cccd1682321856df069e3f1c6fa391a083a9fb02d59db74c14081b3acc4",
        ciphertext: "51d44779f90d40a80048276c035cb49ca2a47bcb9b9cf7270b9144793787d53f",
    },
    // NIST CAVP, CBCMMT256, encrypt, count 1.
    CipherAnswer {
        algorithm: Encryption::Aes256Cbc,
        key: "dce26c6b4cfb286510da4eecd2cffe6cdf430f33db9b5f77b460679bd49d13ae",
        iv: "fdeaa134c8d7379d457175fd1a57d3fc",
        plaintext: "50e9eee1ac528009e8cbcd356975881f957254b13f91d7c6662d10312052eb00",
        ciphertext: "2fa0df722a9fd3b64cb18fb2b3db55ff2267422757289413f8f657507412a64c",
    },
    // RFC 3686 section 6, test vectors 3, 6 and 9.
    CipherAnswer {
        algorithm: Encryption::Aes128Ctr,
        key: "7691be035e5020a8ac6e618529f9a0dc00e0017b",
        iv: "27777f3f4a1786f0",
        plaintext: "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223",
        ciphertext: "c1cf48a89f2ffdd9cf4652e9efdb72d74540a42bde6d7836d59a5ceaaef3105325b2072f",
    },
    CipherAnswer {
        algorithm: Encryption::Aes192Ctr,
        key: "02bf391ee8ecb159b959617b0965279bf59b60a786d3e0fe0007bdfd",
        iv: "5cbd60278dcc0912",
        plaintext: "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223",
        ciphertext: "96893fc55e5c722f540b7dd1ddf7e758d288bc95c69165884536c811662f2188abee0935",
    },
    CipherAnswer {
        algorithm: Encryption::Aes256Ctr,
        key: "ff7a617ce69148e4f1726e2f43581de2aa62d9f805532edff1eed687fb54153d001cc5b7",
        iv: "51a51d70a1c11148",
        plaintext: "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223",
        ciphertext: "eb6c52821d0bbbf7ce7594462aca4faab407df866569fd07f48cc0b583d6071f1ec0e6b8",
    },
];

/// Of HMAC RFC 2202 and RFC 4231, test case 2 ("Jefe"); cut to the ICV.
const MACS: [MacAnswer; 9] = [
    jefe(Authentication::Md5, "750c783e6ab0b503eaa86e31"),
    jefe(Authentication::Sha1, "effcdf6ae5eb2fa2d27416d5"),
    jefe(Authentication::Sha256, "5bdcc146bf60754e6a042426089575c7"),
    jefe(Authentication::Sha384, "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47"),
    jefe(Authentication::Sha512, "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea250554"),
    // RFC 3566 section 4.6, test cases 5 and 6: the last block whole, and padded.
    MacAnswer {
        algorithm: Authentication::AesXcbc,
        key: "000102030405060708090a0b0c0d0e0f",
        message: "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
        icv: "f54f0ec8d2b9f3d36807734b",
    },
    MacAnswer {
        algorithm: Authentication::AesXcbc,
        key: "000102030405060708090a0b0c0d0e0f",
        message: "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f2021",
        icv: "becbb3bccdb518a30677d548",
    },
    // RFC 4493 section 4, examples 4 and 3: the same.
    MacAnswer {
        algorithm: Authentication::AesCmac,
        key: "2b7e151628aed2a6abf7158809cf4f3c",
        message: "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e5130c81c46a35ce411e5fbc1191a0a52ef\
                  f69f2445df4f9b17ad2b417be66c3710",
        icv: "51f0bebf7e3b9d92fc497417",
    },
    MacAnswer {
        algorithm: Authentication::AesCmac,
        key: "2b7e151628aed2a6abf7158809cf4f3c",
        message: "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e5130c81c46a35ce411",
        icv: "dfa66747de9ae63030ca3261",
    },
];

const fn jefe(algorithm: Authentication, icv: Hex) -> MacAnswer {
    MacAnswer {
        algorithm,
        key: "4a656665",
        message: "7768617420646f2079612077616e7420666f72206e6f7468696e673f",
        icv,
    }
}

const AEADS: [AeadAnswer; 7] = [
    // NIST CAVP, VNT128, VNT192 and VNT256, Nlen 11, the first. CCM's ICVs of 8 and 12 bytes are no prefixes of the
    // one of 16 (the length is part of what is authenticated): these two are from OpenSSL 4.0.
    AeadAnswer {
        algorithm: Encryption::Aes128Ccm,
        key: "e6ab9e70a4fb51b01c2e262233e64c0d",
        salt: "74e689",
        iv: "eb5af9441dd690a6",
        aad: "42f6518ee0fbe42f28e13b4bb2eb60517b37c9744394d9143393a879c3e107c7",
        plaintext: "ba15916733550d7aa82b2f6b117cd3f54c83ddc16cd0288a",
        ciphertext: "dcc151443288f35d39ed8fae6f0ce1d1eb656f4f7fd65c0b",
        icvs: &["3a9d050b15bc129c", "fe05c27e62bac227075eb4b4", "16f322ce85d7c54e71ac560fd4da9651"],
    },
    AeadAnswer {
        algorithm: Encryption::Aes192Ccm,
        key: "af84c6f302c59aeee6d5728ed5da2e3c64a5a781c52c4d1b",
        salt: "df990c",
        iv: "42a268950677c433",
        aad: "a6ab5d78427f297a4b7e21f1091ff3a5b20caa3fe1cbcb09459d9df596a6c8e1",
        plaintext: "6db41aeb5f7c24df8929dbc30483b3c7934b3bd1cdce5bb9",
        ciphertext: "8c9328258bf71970d33e23a3ff81cc1c9cbe196a1294264b",
        icvs: &["cf9fe02126df5e9c", "26f733266490b51bb541e9b8", "fd6a7255e4801963bb30a63de3fc5b82"],
    },
    AeadAnswer {
        algorithm: Encryption::Aes256Ccm,
        key: "97bc7482a87ba005475dfa3448f59d4b3f9c4c969d08b39b1b21ef965c0f5125",
        salt: "0bcf78",
        iv: "103ec52d6df28887",
        aad: "049c10f0cb37ae08eae2d0766563b7c5a8454f841c2061a4f71a0a2158ae6ce5",
        plaintext: "b99bf4dc781795fc4d3a8467b06e1665d4e543657f23129f",
        ciphertext: "0d3891fa0caac1f7ebe41b480920ffd34d4155064c24f3b1",
        icvs: &["95c406cd52207728", "dfe681995b0b37c979207279", "7a483163dd8f228d1f20cd4f86cf38fd"],
    },
    // draft-mcgrew-gcm-test-01, cases 6, 7 and 9: ESP packets with and without ESN. Shorter ICVs of GCM are
    // prefixes (SP 800-38D section 7.1, step 6).
    AeadAnswer {
        algorithm: Encryption::Aes128Gcm,
        key: "3de09874b388e6491988d0c3607eae1f",
        salt: "57690e43",
        iv: "4e280000a2fca1a3",
        aad: "42f67e3f1010101010101010",
        plaintext: "4500001c42a200008001441f406793b6e00000020a00f5ff01020201",
        ciphertext: "fba2ca845e5df9f0f22c3e6e86dd831e1fc65792cd1af9130e1379ed",
        icvs: &["369f071f35e034be", "369f071f35e034be95f112e4", "369f071f35e034be95f112e4e7d05d35"],
    },
    AeadAnswer {
        algorithm: Encryption::Aes192Gcm,
        key: "feffe9928665731c6d6a8f9467308308feffe9928665731c",
        salt: "cafebabe",
        iv: "facedbaddecaf888",
        aad: "0000a5f80000000a",
        plaintext: "45000028a4ad4000400678800a01038f0a010612802306b8cb712602dd6bb03e501016d075680001",
        ciphertext: "a5b1f8066029aea40e598b8122de02420938b3ab33f828e687b8858b5bfbdbd0315b27452144cc77",
        icvs: &["95457b9652037f53", "95457b9652037f5318027b5b", "95457b9652037f5318027b5b4cd7a636"],
    },
    AeadAnswer {
        algorithm: Encryption::Aes256Gcm,
        key: "abbccddef00112233445566778899aababbccddef00112233445566778899aab",
        salt: "73616c74",
        iv: "616e640169766563",
        aad: "17405e67156f3126dd0db99b",
        plaintext: "45080028732c00004006e9f90a0106120a01038f06b88023dd6bafbecb71260250101f646d540001",
        ciphertext: "f2d69ecdbd5a0d5b8d5ef38bad4da58d1f278fde98ef67549d524a3018d9a57ff4d3a31ce673119e",
        icvs: &["451626c2415771e3", "451626c2415771e3b7eebca6", "451626c2415771e3b7eebca614c89b35"],
    },
    // RFC 7634 appendix A: an ESP packet.
    AeadAnswer {
        algorithm: Encryption::ChaCha20Poly1305,
        key: "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f",
        salt: "a0a1a2a3",
        iv: "1011121314151617",
        aad: "0102030400000005",
        plaintext: "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec100007362708090a0b0c0d0e0f\
                    101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363701020204",
        ciphertext: "24039428b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef407ae5c614ee8099d52844eb61aa95df\
                     ab4c02f72aa71e7c4c4f64c9befe2facc638e8f3cbec163fac469b502773f6fb94e664da9165b82829f641e0",
        icvs: &["76aaa8266b7fb0f7b11b369907e1ad43"],
    },
];

/// NIST CAVP, gcmEncryptExtIV128, 192 and 256, PTlen 0, AADlen 128, the first.
const GMACS: [GmacAnswer; 3] = [
    GmacAnswer {
        algorithm: Encryption::Aes128Gmac,
        key: "77be63708971c4e240d1cb79e8d77feb",
        salt: "e0e00f19",
        iv: "fed7ba0136a797f3",
        message: "7a43ec1d9c0a5a78a0b16533a6213cab",
        icv: "209fcc8d3675ed938e9c7166709dd946",
    },
    GmacAnswer {
        algorithm: Encryption::Aes192Gmac,
        key: "41c5da8667ef725220ffe39ae0ac590ac9fca729ab60ada0",
        salt: "05ad13a5",
        iv: "e2c2ab667e1a6fbc",
        message: "8b5c124bef6e2f0fe4d8c95cd5fa4cf1",
        icv: "204bdb1bd62154bf08922aaa54eed705",
    },
    GmacAnswer {
        algorithm: Encryption::Aes256Gmac,
        key: "78dc4e0aaf52d935c3c01eea57428f00ca1fd475f5da86a49c8dd73d68c8e223",
        salt: "d79cf22d",
        iv: "504cc793c3fb6c8a",
        message: "b96baa8c1c75a671bfb2d08d06be5f36",
        icv: "3e5d486aa2e30b22e040b85723a06e76",
    },
];

/// Runs a known answer of every algorithm in both directions and a corrupted one; then seals a packet under
/// every suite, opens it, and sees a corrupted one refused and wiped.
///
/// # Errors
/// The name of the first algorithm that answers wrong; the daemon then refuses to start.
pub fn self_test() -> Result<(), &'static str> {
    CIPHERS.iter().try_for_each(CipherAnswer::check)?;
    MACS.iter().try_for_each(MacAnswer::check)?;
    AEADS.iter().try_for_each(AeadAnswer::check)?;
    GMACS.iter().try_for_each(GmacAnswer::check)?;
    Suite::all().try_for_each(|suite| round_trip(suite, false).and_then(|()| round_trip(suite, true)))
}

fn bytes(hex: Hex) -> Vec<u8> {
    hex::decode(hex).expect("the answers are hexadecimal")
}

/// Ok when `holds`, else the name of what answered wrong.
fn expect(holds: bool, name: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(name) }
}

impl CipherAnswer {
    fn check(&self) -> Result<(), &'static str> {
        let name = self.algorithm.name();
        let (key, iv) = (bytes(self.key), bytes(self.iv));
        let (plaintext, ciphertext) = (bytes(self.plaintext), bytes(self.ciphertext));

        let mut text = plaintext.clone();
        let encryptor = Encryptor::new(self.algorithm, &key).ok_or(name)?;
        encryptor.encrypt(&mut [CipherLane { iv: &iv, text: &mut text }]);
        expect(text == ciphertext, name)?;

        let decryptor = Decryptor::new(self.algorithm, &key).ok_or(name)?;
        let mut decrypt = |ciphertext: &[u8]| {
            decryptor.decrypt([(&iv[..], ciphertext, &mut text[..])].into_iter());
            text == plaintext
        };
        expect(decrypt(&ciphertext), name)?;
        let mut corrupted = ciphertext;
        corrupted[0] ^= 1;
        expect(!decrypt(&corrupted), name)
    }
}

impl MacAnswer {
    fn check(&self) -> Result<(), &'static str> {
        let name = self.algorithm.name();
        let mac = Mac::new(self.algorithm, &bytes(self.key)).ok_or(name)?;
        let message = bytes(self.message);
        // In two parts, as with ESN.
        let (front, back) = message.split_at(message.len() - 4);
        let mut icv = bytes(self.icv);
        let verify = |icv: &[u8]| {
            let mut verdict = false;
            mac.verify([((), front, back, icv)].into_iter(), |(), is_right| verdict = is_right);
            verdict
        };
        expect(verify(&icv), name)?;
        icv[0] ^= 0x80;
        expect(!verify(&icv), name)?;
        mac.sign([(front, back, &mut icv[..])].into_iter());
        expect(icv == bytes(self.icv), name)
    }
}

impl AeadAnswer {
    fn check(&self) -> Result<(), &'static str> {
        let name = self.algorithm.name();
        let (key, salt, iv, aad) = (bytes(self.key), bytes(self.salt), bytes(self.iv), bytes(self.aad));
        let (plaintext, ciphertext) = (bytes(self.plaintext), bytes(self.ciphertext));
        for expected in self.icvs.iter().copied().map(bytes) {
            let aead = Aead::new(self.algorithm, expected.len() as u8, &key).ok_or(name)?;
            let mut text = plaintext.clone();
            let mut icv = vec![0; expected.len()];
            let sealed = aead.seal([&salt, &iv], &aad, &mut text, &mut icv);
            expect(sealed && text == ciphertext && icv == expected, name)?;

            text.fill(0xff);
            let opened = aead.open([&salt, &iv], &aad, &ciphertext, &icv, &mut text);
            expect(opened && text == plaintext, name)?;

            icv[expected.len() - 1] ^= 1;
            let opened = aead.open([&salt, &iv], &aad, &ciphertext, &icv, &mut text);
            expect(!opened && text.iter().all(|&byte| byte == 0), name)?;
        }
        Ok(())
    }
}

impl GmacAnswer {
    fn check(&self) -> Result<(), &'static str> {
        let name = self.algorithm.name();
        let gmac = Gmac::new(self.algorithm, &bytes(self.key)).ok_or(name)?;
        let (salt, iv, message) = (bytes(self.salt), bytes(self.iv), bytes(self.message));
        // In two parts that both are no whole blocks.
        let (front, back) = message.split_at(message.len() - 4);
        let parts = || GmacMessage { nonce: [&salt, &iv], front, back };
        let mut icv = bytes(self.icv);
        let verify = |icv: &[u8]| {
            let mut verdict = false;
            gmac.verify([((), parts(), icv)].into_iter(), |(), is_right| verdict = is_right);
            verdict
        };
        expect(verify(&icv), name)?;
        icv[0] ^= 0x80;
        expect(!verify(&icv), name)?;
        gmac.sign([(parts(), &mut icv[..])].into_iter());
        expect(icv == bytes(self.icv), name)
    }
}

/// A packet through [`Sealer`] and [`Opener`]; what is right is opened, what is not is refused and wiped.
fn round_trip(suite: Suite, esn: bool) -> Result<(), &'static str> {
    let name = match suite.authentication() {
        Authentication::None => suite.encryption().name(),
        authentication => authentication.name(),
    };
    // No DES key among these bytes is weak.
    let key =
        |length: usize| Key::new(Zeroizing::new((1..=length as u8).map(|n| n.wrapping_mul(37)).collect()));
    let keys = KeyMaterial {
        encryption: key(suite.encryption_key_length()),
        authentication: key(suite.authentication_key_length()),
    };
    let sealer = Sealer::new(suite, &keys, esn).map_err(|_| name)?;
    let opener = Opener::new(suite, &keys, esn).map_err(|_| name)?;
    // With ESN a high word that is not zero.
    let sequence = if esn { 3 << 32 | 7 } else { 7 };
    let payload = [0x45; 46];
    // 46 bytes of payload, pad length and next header are 48: whole blocks of any cipher, no padding.
    let mut esp = vec![0; 8 + usize::from(suite.iv_length()) + 48 + usize::from(suite.icv_length())];
    let fresh =
        SequenceCounter::starting_after(sequence - 1).take(1, sequence).and_then(|mut range| range.next());
    let packet = Seal { esp: &mut esp, payload: &payload, next_header: 4, sequence: fresh.ok_or(name)? };
    sealer.seal(Spi(0x100), &mut [packet], &mut IvSource::from_seed([0; 32]));

    let mut plaintext = [0xff; 48];
    let mut open = |esp: &[u8], sequence| {
        let mut burst = [Open { esp, plaintext: &mut plaintext, sequence, verdict: None }];
        opener.open(&mut burst);
        let [Open { verdict, .. }] = burst;
        (verdict.map(|verdict| verdict.sequence()), plaintext)
    };
    let (verdict, opened) = open(&esp, sequence);
    expect(verdict == Some(sequence) && opened[..46] == payload && opened[46..] == [0, 4], name)?;
    let refused = (None, [0; 48]);
    if esn {
        // The high word is authenticated though it is not sent.
        expect(open(&esp, sequence ^ 1 << 32) == refused, name)?;
    }
    let last = esp.len() - 1;
    esp[last] ^= 1;
    expect(open(&esp, sequence) == refused, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_algorithm_answers_right() {
        assert_eq!(self_test(), Ok(()));
        for encryption in Encryption::ALL {
            let answers = CIPHERS.iter().filter(|answer| answer.algorithm == encryption).count()
                + AEADS.iter().filter(|answer| answer.algorithm == encryption).count()
                + GMACS.iter().filter(|answer| answer.algorithm == encryption).count();
            assert_eq!(answers, 1, "{encryption}");
        }
        for authentication in &Authentication::ALL[1..] {
            assert!(MACS.iter().any(|answer| answer.algorithm == *authentication), "{authentication}");
        }
    }

    /// The other digit at `at`, leaked: a test may.
    fn other(hex: Hex, at: usize) -> Hex {
        let mut digits = hex.as_bytes().to_vec();
        digits[at] = if digits[at] == b'0' { b'1' } else { b'0' };
        String::from_utf8(digits).unwrap().leak()
    }

    #[test]
    fn a_wrong_answer_is_noticed_and_named() {
        for answer in CIPHERS {
            let name = answer.algorithm.name();
            let wrong = CipherAnswer { ciphertext: other(answer.ciphertext, 5), ..answer };
            assert_eq!(wrong.check(), Err(name));
            let wrong = CipherAnswer { key: "0123", ..answer };
            assert_eq!(wrong.check(), Err(name));
        }
        for answer in MACS {
            let name = answer.algorithm.name();
            let wrong = MacAnswer { icv: other(answer.icv, answer.icv.len() - 1), ..answer };
            assert_eq!(wrong.check(), Err(name));
        }
        for answer in AEADS {
            for at in 0..answer.icvs.len() {
                let mut icvs = answer.icvs.to_vec();
                icvs[at] = other(icvs[at], 15);
                let wrong = AeadAnswer { icvs: icvs.leak(), ..answer };
                assert_eq!(wrong.check(), Err(answer.algorithm.name()));
            }
            let wrong = AeadAnswer { ciphertext: other(answer.ciphertext, 0), ..answer };
            assert_eq!(wrong.check(), Err(answer.algorithm.name()));
        }
        for answer in GMACS {
            let name = answer.algorithm.name();
            let wrong = GmacAnswer { icv: other(answer.icv, 31), ..answer };
            assert_eq!(wrong.check(), Err(name));
            let wrong = GmacAnswer { iv: other(answer.iv, 0), ..answer };
            assert_eq!(wrong.check(), Err(name));
        }
    }
}
