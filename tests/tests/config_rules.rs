//! What a configuration may ask for without being refused or warned: algorithms by RFC 8221, replay protection.

use adit_engine::control::check;

/// A tunnel with these lines; the warnings, or the first problem's field.
fn load(engine: &str, lines: &str, key: usize, authentication_key: usize) -> Result<Vec<String>, String> {
    let hex = |length: usize, salt: u8| {
        (0..length as u8).map(|n| format!("{:02x}", n.wrapping_mul(37) ^ salt | 2)).collect::<String>()
    };
    let keys = |salt| {
        let mut keys = String::new();
        if key > 0 {
            keys += &format!("encryption-key = \"hex:{}\"\n", hex(key, salt));
        }
        if authentication_key > 0 {
            keys += &format!("authentication-key = \"hex:{}\"\n", hex(authentication_key, salt | 0x80));
        }
        keys
    };
    let text = format!(
        "[engine]\n{engine}\n[[interface]]\nname = \"in\"\nside = \"protected\"\n[[interface]]\nname = \"out\"\nside = \"unprotected\"\n\
         [[tunnel]]\nname = \"t\"\nlocal = \"192.0.2.1\"\nremote = \"192.0.2.2\"\n{lines}\n\
         [tunnel.inbound]\nspi = 0x1001\n{}[tunnel.outbound]\nspi = 0x1002\n{}\
         [[policy]]\nname = \"p\"\naction = \"protect\"\ntunnel = \"t\"\nremote = [\"10.2.0.0/16\"]\n",
        keys(0x10),
        keys(0x40),
    );
    match check::load(&text, false) {
        Ok(settings) => Ok(settings.warnings),
        Err(problems) => Err(problems.0[0].field.clone()),
    }
}

/// RFC 8221 section 5, table 1, and section 6, table 2. What they call MUST and SHOULD is there for the asking; SHOULD
/// NOT and MUST NOT are for whom the operator allows them, and warned of all the same.
#[test]
fn algorithm_levels_are_those_of_rfc_8221() {
    let suites = [
        ("MUST", "null", "sha256", 0, 32),
        ("MUST", "aes-128-cbc", "sha256", 16, 32),
        ("MUST", "aes-256-cbc", "sha256", 32, 32),
        ("MUST", "aes-128-gcm", "none", 20, 0),
        ("MUST", "aes-256-gcm", "none", 36, 0),
        ("SHOULD", "aes-128-cbc", "sha512", 16, 64),
        ("SHOULD", "aes-128-ccm", "none", 19, 0),
        ("SHOULD", "chacha20-poly1305", "none", 36, 0),
        ("SHOULD NOT", "3des", "sha256", 24, 32),
        ("MUST NOT", "des", "sha256", 8, 32),
        ("MUST NOT", "aes-128-cbc", "md5", 16, 16),
        // MUST-: to be demoted. RFC 8221 section 6 wants it implemented; here it takes a word.
        ("MUST-", "aes-128-cbc", "sha1", 16, 20),
    ];
    for (level, encryption, authentication, key, authentication_key) in suites {
        // ENCR_AES_CCM_8 is CCM with 8 bytes of ICV.
        let more = if encryption == "aes-128-ccm" { "icv-length = 8" } else { "" };
        let lines = format!("encryption = \"{encryption}\"\nauthentication = \"{authentication}\"\n{more}");
        let plain = load("", &lines, key, authentication_key);
        let allowed = load("allow-legacy = true", &lines, key, authentication_key);
        match level {
            "MUST" | "SHOULD" => assert_eq!((plain, allowed), (Ok(vec![]), Ok(vec![])), "{lines}"),
            _ => {
                let field = plain.expect_err(&lines);
                assert!(field == "tunnel[0].encryption" || field == "tunnel[0].authentication", "{field}");
                let warnings = allowed.expect(&lines);
                assert!(warnings.len() == 1 && warnings[0].contains("weak"), "{lines}: {warnings:?}");
            }
        }
    }
    // The same, as the project's vectors have it.
    let table = adit_tests::vectors::Vectors::load("algorithm_levels_rfc8221.json").json.clone();
    for (name, level) in [
        ("DES (IV64/DES)", "MUST NOT"),
        ("3DES", "SHOULD NOT"),
        ("NULL", "MUST"),
        ("AES-CBC 128/256", "MUST"),
        ("AES-CCM_8", "SHOULD (IoT)"),
        ("AES-GCM_16", "MUST"),
        ("CHACHA20_POLY1305", "SHOULD"),
        ("HMAC-MD5-96", "MUST NOT"),
        ("HMAC-SHA1-96", "MUST-"),
        ("HMAC-SHA2-256-128", "MUST"),
        ("HMAC-SHA2-512-256", "SHOULD"),
    ] {
        let rows = ["encryption", "authentication"].map(|kind| table[kind].as_array().unwrap());
        let row = rows.into_iter().flatten().find(|row| row[0] == name);
        assert_eq!(row.unwrap_or_else(|| panic!("{name}"))[1], level, "{name}");
    }
    // Section 4: encryption alone, and section 6: nothing at all.
    for encryption in ["aes-128-cbc", "aes-128-ctr", "null"] {
        let lines = format!("encryption = \"{encryption}\"\nauthentication = \"none\"");
        assert_eq!(load("allow-legacy = true", &lines, 16, 0), Err("tunnel[0].authentication".into()));
    }
}

/// RFC 4303 section 3.4.3: a receiver may switch it off; here only one that says so, and it is told what that means.
/// RFC 4543: GMAC in ESP and in AH, by one name.
#[test]
fn ah_takes_a_mac_or_gmac() {
    let ah = |algorithm: &str| format!("protocol = \"ah\"\n{algorithm}");
    for (length, key) in [(128, 20), (192, 28), (256, 36)] {
        assert_eq!(load("", &ah(&format!("encryption = \"aes-{length}-gmac\"")), key, 0), Ok(vec![]));
    }
    assert_eq!(load("", &ah("authentication = \"sha256\""), 0, 32), Ok(vec![]));
    let refused = |algorithm, key, field: &str| {
        assert_eq!(load("", &ah(algorithm), key, 0), Err(field.into()));
    };
    refused("encryption = \"aes-128-gcm\"", 20, "tunnel[0].encryption");
    refused("encryption = \"aes-128-gmac\"", 16, "tunnel[0].inbound.encryption-key");
}

#[test]
fn replay_protection_is_off_only_where_that_is_written() {
    let with = |more: &str| {
        let lines = format!("encryption = \"aes-128-cbc\"\nauthentication = \"sha256\"\nesn = false\n{more}");
        load("", &lines, 16, 32)
    };
    assert_eq!(with(""), Ok(vec![]));
    assert_eq!(with("replay-window = 32"), Ok(vec![]));
    let warnings = with("replay-window = 0").unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("replay-window = 0"), "{warnings:?}");
    for size in [1, 31, 65537] {
        assert_eq!(with(&format!("replay-window = {size}")), Err("tunnel[0].replay-window".into()));
    }
}
