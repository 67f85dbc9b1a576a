//! scripts/conformance over the requirements as they are, and over lines that are wrong on purpose: it must say so.

use std::process::{Command, Output};

use adit_tests::control::Directory;
use adit_tests::process::repository;
use serde_json::Value;

fn conformance(arguments: &[&str]) -> Output {
    Command::new(repository().join("scripts/conformance")).args(arguments).output().expect("python3 is there")
}

/// No MUST is open, and every test that is named is there.
#[test]
fn every_line_has_its_proof_or_its_reason() {
    let report = conformance(&["--quiet"]);
    assert!(report.status.success(), "{}", String::from_utf8_lossy(&report.stderr));
    let report: Value = serde_json::from_slice(&conformance(&["--json"]).stdout).unwrap();
    let lines = report["lines"].as_array().unwrap();
    let count = |kind: &str| lines.iter().filter(|line| line["kind"] == kind).count();
    assert_eq!((count("requirement"), count("fault")), (158, 45));
}

/// One line with a change to it; what is said.
fn judged(change: impl Fn(&mut toml::Table)) -> (bool, String) {
    let mut line: toml::Table = toml::from_str(
        "line = 1\nlevel = \"MUST\"\nsource = \"RFC 4303 section 2.4\"\ntext = \"Padding is 1, 2, 3.\"\n\
         tests = [\"engine/transform/esp::every_pad_length_is_read\"]",
    )
    .unwrap();
    change(&mut line);
    let directory = Directory::new();
    let group = "[[group]]\nfirst = 1\ntitle = \"A\"\n";
    let requirements = format!("{group}[[requirement]]\n{line}");
    std::fs::write(directory.path().join("requirements.toml"), requirements).unwrap();
    std::fs::write(directory.path().join("faults.toml"), group).unwrap();
    let report = conformance(&["--quiet", "--lines", directory.path().to_str().unwrap()]);
    (report.status.success(), String::from_utf8(report.stderr).unwrap())
}

#[test]
fn what_is_missing_is_said() {
    let set = |field: &'static str, value: &'static str| {
        move |line: &mut toml::Table| {
            line.insert(field.into(), value.into());
        }
    };
    assert_eq!(judged(|_| ()), (true, String::new()));
    let refused = |change: &dyn Fn(&mut toml::Table), expected: &str| {
        let (success, said) = judged(change);
        assert!(!success && said.contains(expected), "{expected}: {said}");
    };
    let tests = |names: &'static [&'static str]| {
        move |line: &mut toml::Table| {
            line.insert("tests".into(), toml::Value::from(names.to_vec()));
        }
    };
    refused(&tests(&["engine/transform/esp::no_such_test"]), "no_such_test");
    refused(&tests(&["no_such_file::every_pad_length_is_read"]), "no_such_file");
    // A function, but not a test.
    refused(&tests(&["engine/transform/esp::trailer"]), "esp::trailer");
    refused(&tests(&["scripts/no-such-script"]), "scripts/no-such-script");
    refused(&tests(&[]), "the proof of a MUST");
    refused(&set("level", "PERHAPS"), "PERHAPS");
    refused(&set("unheard-of", "x"), "unheard-of");
    refused(&set("without", "no time"), "no time");
    refused(&set("without", "with IKE"), "`reason` beside `without`");
    let open = |kind: &'static str| {
        move |line: &mut toml::Table| {
            line.remove("tests");
            line.insert("without".into(), kind.into());
            line.insert("reason".into(), "because".into());
        }
    };
    refused(&open("open"), "the proof of a MUST");
    refused(&open("not offered"), "the test of the refusal");
    assert!(judged(open("with IKE")).0);
    // What is only this project's own may be open, and is told as such.
    let own = |line: &mut toml::Table| {
        open("open")(line);
        line.insert("level".into(), "OURS".into());
    };
    assert!(judged(own).0);
    refused(&|line| drop(line.insert("line".into(), 2.into())), "out of place");
}
