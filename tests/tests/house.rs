//! The rules of the house, read from the source: layers import downwards only, files stay short, `unsafe` stays where
//! it belongs, nothing is left for later.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Layers from the bottom up. Modules of one row do not see each other.
const LAYERS: &[&[&str]] = &[
    &["wire"],
    &["crypto"],
    &["transform"],
    &["sa"],
    &["policy", "route"],
    &["pipeline"],
    &["io", "control", "ike"],
    &["daemon", "offline"],
    &["bin"],
];

/// Files longer than this are two files.
const MAX_LINES: usize = 800;

/// Where `unsafe` may be, below engine/src.
const UNSAFE_ALLOWED: &[&str] =
    &["io/", "crypto/kernels/", "crypto/x86/", "crypto/aarch64/", "sa/publish.rs"];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Files with one of `extensions` below `directory`, as (path relative to it, text).
fn sources(directory: &Path, extensions: &[&str]) -> Vec<(String, String)> {
    fn walk(root: &Path, directory: &Path, extensions: &[&str], out: &mut Vec<(String, String)>) {
        let Ok(entries) = fs::read_dir(directory) else { return };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if !path.ends_with("target") && !path.ends_with("corpus") {
                    walk(root, &path, extensions, out);
                }
            } else if path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)) {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                out.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut out = Vec::new();
    walk(directory, directory, extensions, &mut out);
    out.sort();
    out
}

fn engine() -> Vec<(String, String)> {
    let sources = sources(&workspace().join("engine/src"), &["rs"]);
    assert!(sources.len() > 30, "the house has rooms: {}", sources.len());
    sources
}

/// The code of a file: comments and the contents of string literals blanked, lines kept. Good enough for Rust as
/// rustfmt leaves it: raw strings with quotes inside them would need more.
fn code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let mut block_depth = 0;
    while let Some(c) = chars.next() {
        let next = chars.peek().copied();
        match (c, next) {
            ('/', Some('*')) => {
                block_depth += 1;
                chars.next();
            }
            ('*', Some('/')) if block_depth > 0 => {
                block_depth -= 1;
                chars.next();
            }
            ('\n', _) => out.push('\n'),
            _ if block_depth > 0 => {}
            ('/', Some('/')) => while chars.next_if(|c| *c != '\n').is_some() {},
            ('"', _) => {
                out.push_str("\"\"");
                while let Some(c) = chars.next() {
                    match c {
                        '\\' => drop(chars.next().filter(|c| *c == '\n').map(|c| out.push(c))),
                        '\n' => out.push('\n'),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            // A quote or a backslash as a character, so that it opens no string.
            ('\'', Some('"')) => drop(chars.next()),
            ('\'', Some('\\')) => {
                chars.next();
                chars.next();
            }
            _ => out.push(c),
        }
    }
    out
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where `word` stands alone in `code`.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |at| !code[..*at].ends_with(is_word) && !code[at + word.len()..].starts_with(is_word))
}

fn line(code: &str, at: usize) -> usize {
    1 + code[..at].matches('\n').count()
}

/// The names directly behind `prefix` (`crate::`): `a` of `crate::a::b`, and `a`, `b` of `crate::{a::x, b}`.
fn names_behind(code: &str, prefix: &str) -> Vec<(usize, String)> {
    let mut out = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at].ends_with(is_word) || code[..at].ends_with(':') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        let name = |text: &str| text.trim_start().chars().take_while(|c| is_word(*c)).collect::<String>();
        if let Some(group) = rest.strip_prefix('{') {
            let (mut depth, mut start) = (0usize, 0);
            for (i, c) in group.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' if depth > 0 => depth -= 1,
                    ',' | '}' if depth == 0 => {
                        out.push((at, name(&group[start..i])));
                        start = i + 1;
                        if c == '}' {
                            break;
                        }
                    }
                    _ => {}
                }
            }
        } else {
            out.push((at, name(rest)));
        }
    }
    out.retain(|(_, name)| !name.is_empty());
    out
}

fn rank(layer: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&layer))
}

/// What `file` (relative to engine/src) imports against the rule.
fn layer_faults(file: &str, text: &str, siblings: &BTreeSet<&str>) -> Vec<String> {
    let layer = file.split(['/', '.']).next().unwrap();
    if layer == "lib" {
        return Vec::new();
    }
    let Some(own) = rank(layer) else {
        return vec![format!("{file}: `{layer}` has no place among the layers")];
    };
    let code = code(text);
    let mut uses = names_behind(&code, "crate::");
    uses.extend(names_behind(&code, "adit_engine::"));
    // `super::wire` is `crate::wire` when seen from the top of a module, unless it is a file of the same directory.
    for up in ["super::", "super::super::"] {
        uses.extend(names_behind(&code, up).into_iter().filter(|(_, name)| {
            let directory = file.rsplit_once('/').map_or("", |(directory, _)| directory);
            !directory.is_empty()
                && rank(name).is_some()
                && !siblings.contains(format!("{directory}/{name}.rs").as_str())
                && !siblings.contains(format!("{directory}/{name}/mod.rs").as_str())
        }));
    }
    let mut faults = Vec::new();
    for (at, name) in uses {
        let at = line(&code, at);
        match rank(&name) {
            _ if name == layer => {}
            Some(other) if other < own => {}
            Some(_) => faults.push(format!("{file}:{at}: `{layer}` imports `{name}`, which is not below it")),
            // A macro exported at the root of the crate.
            None if name.starts_with("__") => {}
            None => faults.push(format!("{file}:{at}: `crate::{name}` has no place among the layers")),
        }
    }
    faults
}

fn assert_none(faults: Vec<String>) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn layers_import_downwards_only() {
    let engine = engine();
    let files = engine.iter().map(|(file, _)| file.as_str()).collect();
    assert_none(engine.iter().flat_map(|(file, text)| layer_faults(file, text, &files)).collect());
}

#[test]
fn the_layer_rule_sees_what_it_should() {
    let faults =
        |file: &str, text: &str| layer_faults(file, text, &BTreeSet::from([file, "control/io.rs"])).len();
    assert_eq!(faults("wire/ip.rs", "use crate::wire::checksum;\nuse super::Malformed;"), 0);
    assert_eq!(faults("wire/ip.rs", "use crate::crypto::Suite;"), 1);
    assert_eq!(faults("wire/mod.rs", "use super::crypto;"), 1);
    assert_eq!(faults("wire/ip.rs", "fn f() { crate::sa::Sad::new() }"), 1);
    assert_eq!(faults("sa/sad.rs", "use crate::{wire::Spi, crypto::{Key, io}, pipeline::Tables};"), 1);
    assert_eq!(faults("policy/spd.rs", "use crate::route::Network;"), 1);
    assert_eq!(faults("route/mirror.rs", "use crate::policy::Spd;"), 1);
    assert_eq!(faults("io/worker.rs", "use crate::control::Request;"), 1);
    assert_eq!(faults("control/mod.rs", "use crate::io::Worker;"), 1);
    assert_eq!(faults("control/mod.rs", "use super::io::Connection;"), 0, "its own submodule");
    assert_eq!(faults("ike/mod.rs", "use crate::control::Request;"), 1);
    assert_eq!(faults("daemon.rs", "use crate::{io, control};"), 0);
    assert_eq!(faults("bin/aditd.rs", "use adit_engine::{io, control, daemon};"), 0);
    assert_eq!(
        faults("wire/ip.rs", "// use crate::io;\n/* crate::io */ let s = \"crate::io \\\" crate::io\";"),
        0
    );
    assert_eq!(faults("wire/ip.rs", "let quote = '\"'; use crate::io; let quote = '\"';"), 1);
    assert_eq!(faults("attic/mod.rs", ""), 1);
    assert_eq!(faults("wire/ip.rs", "use crate::attic::Old;"), 1);
}

/// Every source file of the project, relative to its root.
fn project() -> Vec<(String, String)> {
    let extensions = ["rs", "c", "h"];
    ["engine", "xdp-prog", "bench", "tests"]
        .iter()
        .flat_map(|top| {
            let prefix = format!("{top}/");
            sources(&workspace().join(top), &extensions)
                .into_iter()
                .map(move |(file, text)| (prefix.clone() + &file, text))
        })
        .collect()
}

#[test]
fn files_stay_short() {
    let long = |(file, text): (String, String)| {
        let lines = text.lines().count();
        (lines > MAX_LINES).then(|| format!("{file}: {lines} lines, at most {MAX_LINES}"))
    };
    assert_none(project().into_iter().filter_map(long).collect());
}

fn unsafe_faults(file: &str, text: &str) -> Vec<String> {
    if UNSAFE_ALLOWED.iter().any(|allowed| file.starts_with(allowed)) {
        return Vec::new();
    }
    let code = code(text);
    // `unsafe_code` is the lint's name and another word.
    words(&code, "unsafe").map(|at| format!("{file}:{}: unsafe", line(&code, at))).collect()
}

#[test]
fn unsafe_stays_where_it_belongs() {
    assert_none(engine().iter().flat_map(|(file, text)| unsafe_faults(file, text)).collect());
    assert_eq!(unsafe_faults("wire/ip.rs", "let x = unsafe { y };").len(), 1);
    assert_eq!(unsafe_faults("wire/ip.rs", "#![deny(unsafe_code)] // unsafe").len(), 0);
    assert_eq!(unsafe_faults("io/umem.rs", "let x = unsafe { y };").len(), 0);
}

/// Clocks that somebody can set: lifetimes, timeouts and watchdogs are to hold whatever the date is said to be.
const WALL_CLOCKS: &[&str] = &["SystemTime", "Realtime", "RealtimeCoarse", "CLOCK_REALTIME"];

/// Where people are told when something was, and nothing depends on it.
const WALL_CLOCK_ALLOWED: &[&str] = &["control/audit.rs"];

fn wall_clock_faults(file: &str, text: &str) -> Vec<String> {
    if WALL_CLOCK_ALLOWED.contains(&file) {
        return Vec::new();
    }
    let code = code(text);
    let found = WALL_CLOCKS.iter().flat_map(|clock| words(&code, clock).map(move |at| (clock, at)));
    found.map(|(clock, at)| format!("{file}:{}: {clock}", line(&code, at))).collect()
}

#[test]
fn nobody_asks_the_wall_clock() {
    assert_none(engine().iter().flat_map(|(file, text)| wall_clock_faults(file, text)).collect());
    assert_eq!(wall_clock_faults("sa/lifetime.rs", "let now = SystemTime::now(); // Realtime").len(), 1);
    assert_eq!(wall_clock_faults("sa/lifetime.rs", "clock_gettime(ClockId::Boottime)").len(), 0);
}

/// A worker that panics must not leave the others with half of a truth: the process ends, and its hooks hold.
#[test]
fn a_panic_ends_the_process() {
    let manifest = fs::read_to_string(workspace().join("Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    for profile in ["dev", "release"] {
        assert_eq!(manifest["profile"][profile]["panic"].as_str(), Some("abort"), "{profile}");
    }
    let catches = |(file, text): &(String, String)| {
        let own = text.split("#[cfg(test)]").next().unwrap();
        !file.ends_with("tests.rs") && words(&code(own), "catch_unwind").next().is_some()
    };
    let faults: Vec<_> =
        engine().into_iter().filter(catches).map(|(file, _)| format!("{file}: catches a panic")).collect();
    assert_none(faults);
}

/// The layers that packets go through.
const PACKET_LAYERS: &[&str] = &["wire", "crypto", "transform", "sa", "policy", "pipeline"];

/// Whoever sends packets does not fill a disk: what they come to is counted, and no line is written.
#[test]
fn no_packet_makes_a_line_in_the_log() {
    let speaks = |code: &str| {
        ["tracing", "println", "eprintln", "print", "eprint", "stderr"]
            .iter()
            .any(|word| words(code, word).next().is_some())
    };
    let faults = engine().into_iter().filter(|(file, text)| {
        let layer = file.split(['/', '.']).next().unwrap();
        let own = text.split("#[cfg(test)]").next().unwrap();
        PACKET_LAYERS.contains(&layer) && !file.ends_with("_tests.rs") && speaks(&code(own))
    });
    assert_none(faults.map(|(file, _)| format!("{file}: writes to the log, or elsewhere")).collect());
    assert!(speaks("tracing::warn!(\"\")") && !speaks(&code("// tracing")));
}

fn unfinished_faults(file: &str, text: &str) -> Vec<String> {
    let code = code(text);
    let mut faults = Vec::new();
    for name in ["todo", "unimplemented", "dbg"] {
        for at in words(&code, name).filter(|at| code[at + name.len()..].starts_with('!')) {
            faults.push(format!("{file}:{}: {name}!", line(&code, at)));
        }
    }
    for at in words(&code, "ignore").filter(|at| code[..*at].ends_with("#[")) {
        faults.push(format!("{file}:{}: an ignored test", line(&code, at)));
    }
    faults
}

#[test]
fn nothing_is_left_for_later() {
    assert_none(project().iter().flat_map(|(file, text)| unfinished_faults(file, text)).collect());
    for text in ["fn f() { todo!() }", "unimplemented!();", "dbg!(x);", "#[ignore]", "#[ignore = \"slow\"]"] {
        assert_eq!(unfinished_faults("a.rs", text).len(), 1, "{text}");
    }
    assert_eq!(unfinished_faults("a.rs", "// todo!()\nlet s = \"todo!()\"; #[allow(dead_code)]").len(), 0);
}
