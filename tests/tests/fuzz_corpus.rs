//! Every input that fuzzing kept, replayed on stable Rust: the corpus (one file per path through the code) and the
//! regressions (one file per finding, each described).

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

use adit_tests::fuzzing::{TARGETS, Target, seeds};

/// What was found, as `regressions/<target>-<name>`, and what it was. A file without a line here fails the test.
const REGRESSIONS: &[(&str, &str)] = &[
    (
        "inbound-datagram-without-frames",
        "The frames run out in the middle of a datagram that leaves in fragments: what is sent stays sent, and the next \
         datagram begins. The judge took that for a datagram that was never finished.",
    ),
    (
        "inbound-sealed-without-frames",
        "The same again: sealed packets whose fragments find no frame are lost with their numbers. The judge wanted every \
         number to arrive.",
    ),
    (
        "inbound-refused-error-left-in-frame",
        "A packet let in in clear dies here, and the policy lets no ICMP error out to its sender: the error, \
         with what it quotes, stayed in the free transmit frame. Only clear text, but a free frame holds nothing.",
    ),
    (
        "wire-checksum-in-two-forms",
        "An IPv4 header whose checksum is right as 0xffff, where everybody writes 0. Transport mode put it back as 0; the \
         judge wanted the bytes that came.",
    ),
    (
        "wire-nine-extension-headers",
        "Eight IPv6 extension headers, then a Fragment header of a later fragment: one more than the parser's \
         limit, which counted only headers that it went on behind. The second walk over the chain refused it.",
    ),
];

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Names the input when an oracle panics: the hook runs before the process ends.
fn replay(target: Target, input: &[u8], name: &Path) {
    std::thread_local! {
        static CURRENT: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
    }
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            CURRENT.with_borrow(|name| {
                eprintln!("input: {}", name.as_deref().unwrap_or(Path::new("?")).display())
            });
            print(panic);
        }));
    });
    CURRENT.set(Some(name.to_owned()));
    target(input);
}

fn corpus(name: &str) {
    let (_, target) = TARGETS.iter().find(|(target, _)| *target == name).unwrap();
    let files = files(&directory("corpus").join(name));
    assert!(files.len() > 50, "a corpus of {} inputs", files.len());
    for file in &files {
        replay(*target, &fs::read(file).unwrap(), file);
    }
    // Where it all began; these are not kept as files.
    for (number, seed) in seeds::seeds(name).iter().enumerate() {
        replay(*target, seed, Path::new(&format!("seed {number}")));
    }
}

#[test]
fn wire() {
    corpus("wire");
}

#[test]
fn inbound() {
    corpus("inbound");
}

#[test]
fn control() {
    corpus("control");
}

#[test]
fn fragments() {
    corpus("fragments");
}

#[test]
fn regressions_are_described_and_stay_away() {
    let mut described: Vec<_> = REGRESSIONS.iter().map(|(name, _)| (*name).to_owned()).collect();
    described.sort();
    let files = files(&directory("regressions"));
    let names: Vec<_> = files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, described);
    for (file, name) in files.iter().zip(&names) {
        let (_, target) =
            TARGETS.iter().find(|(target, _)| name.starts_with(&format!("{target}-"))).expect("a target");
        replay(*target, &fs::read(file).unwrap(), file);
    }
}

#[test]
fn no_target_is_forgotten() {
    let mut names: Vec<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    names.sort();
    for place in ["fuzz_targets", "corpus"] {
        let there = files(&directory(place));
        let there: Vec<_> = there.iter().map(|file| file.file_stem().unwrap().to_str().unwrap()).collect();
        assert_eq!(there, names, "{place}");
    }
}
