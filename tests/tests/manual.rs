//! The manual pages against the programs: every command, option and key is in its page, every example is right, and
//! the pages' own markup is.

use std::collections::BTreeSet;
use std::process::Command;

use adit_engine::control::{check, config};
use adit_tests::control::Directory;
use adit_tests::process::{program, repository, run};
use serde_json::Value;

fn page(name: &str) -> String {
    let path = repository().join("engine/man").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The text of a section (.Sh) or subsection (.Ss), up to the next one of its kind or higher.
fn section<'p>(page: &'p str, heading: &str) -> &'p str {
    let start = page.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading:?}")) + 1;
    let rest = &page[start + heading.len()..];
    let ends = ["\n.Sh ", "\n.Ss "].iter().filter(|end| heading.starts_with(".Ss") || **end == "\n.Sh ");
    &rest[..ends.filter_map(|end| rest.find(end)).min().unwrap_or(rest.len())]
}

/// What stands behind `macro_name` in the tags of a list: `.It Cm name , other` gives both.
fn tags(text: &str, macro_name: &str) -> BTreeSet<String> {
    let text = text.replace("\\\n", "");
    let mut found = BTreeSet::new();
    let mut within = false;
    for line in text.lines() {
        within = line.starts_with(".It") || within && !line.starts_with(".Xc");
        if !within {
            continue;
        }
        within = line.starts_with(".It Xo") || !line.starts_with(".It");
        let mut is_tag = false;
        for word in line.trim_start_matches(['.']).split_whitespace() {
            match word {
                "Ar" | "No" | "Ns" | "Cm" if word != macro_name => is_tag = false,
                "It" | "Xo" | "," => {}
                word if word == macro_name => is_tag = true,
                // Short forms are clap's own.
                word if is_tag && word.len() > 1 => found.extend([word.trim_start_matches('-').to_owned()]),
                _ => {}
            }
        }
    }
    found
}

/// What `--help` lists under `heading`: the first words of its entries.
fn listed(help: &str, heading: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != heading).skip(1);
    let entries = lines.take_while(|line| line.is_empty() || line.starts_with(' '));
    let names = entries.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
}

fn help(name: &str, commands: &[&str]) -> String {
    String::from_utf8(run(Command::new(program(name)).args(commands).arg("--help")).stdout).unwrap()
}

/// The long options in a help text.
fn options(help: &str) -> BTreeSet<String> {
    let lines = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let words = lines.flat_map(|line| line.split([' ', ',', '=']).find(|word| word.starts_with("--")));
    words.map(|word| word.trim_start_matches('-').to_owned()).collect()
}

/// Of every command, and known for those of all.
fn is_global(option: &str) -> bool {
    ["help", "version", "json", "socket"].contains(&option)
}

#[test]
fn every_command_and_option_of_adit_is_in_its_page() {
    let page = page("adit.1");
    let global = tags(section(&page, ".Sh DESCRIPTION"), "Fl");
    assert_eq!(global, options(&help("adit", &[])), "options of all commands");
    let mut commands = Vec::new();
    for command in listed(&help("adit", &[]), "Commands:") {
        let nested = match command.as_str() {
            // Its help is its own.
            "offline" => Vec::new(),
            _ => listed(&help("adit", &[&command]), "Commands:"),
        };
        if nested.is_empty() {
            commands.push(command);
        } else {
            commands.extend(nested.iter().map(|second| format!("{command} {second}")));
        }
    }
    assert!(commands.len() >= 20, "{commands:?}");
    for command in &commands {
        let words: Vec<_> = command.split(' ').collect();
        let expected: BTreeSet<_> =
            options(&help("adit", &words)).into_iter().filter(|option| !is_global(option)).collect();
        let heading = page
            .lines()
            .find(|line| {
                *line == format!(".Ss {command}")
                    || [" Ar ", " Op "]
                        .iter()
                        .any(|argument| line.starts_with(&format!(".Ss {command}{argument}")))
            })
            .unwrap_or_else(|| panic!("adit(1) has nothing on {command}"));
        let found = tags(section(&page, heading), "Fl");
        let found: BTreeSet<_> = found.into_iter().filter(|option| !is_global(option)).collect();
        assert_eq!(found, expected, "options of {command}");
    }
    // And nothing that is not there.
    let told = section(&page, ".Sh COMMANDS").matches(".Ss ").count();
    assert_eq!(told, commands.len());
}

#[test]
fn every_option_of_aditd_is_in_its_page() {
    let told = tags(section(&page("aditd.8"), ".Sh DESCRIPTION"), "Fl");
    assert_eq!(told, options(&help("aditd", &[])));
}

/// The keys of a table of the schema.
fn keys(definition: &str) -> BTreeSet<String> {
    let schema = config::schema();
    let properties = schema["$defs"][definition]["properties"].as_object();
    properties.unwrap_or_else(|| panic!("{definition}")).keys().cloned().collect()
}

#[test]
fn every_key_of_the_configuration_is_in_its_page() {
    let page = page("adit.toml.5").replace("\\(dq", "\"");
    for (heading, definition, tables) in [
        ("[engine]", "EngineTable", &["icmp", "reassembly"][..]),
        ("[engine.reassembly]", "ReassemblyTable", &[]),
        ("[engine.icmp]", "IcmpTable", &[]),
        ("[[interface]]", "InterfaceTable", &[]),
        ("[profile.NAME]", "ProfileTable", &[]),
        ("[[tunnel]]", "TunnelTable", &["inbound", "outbound"]),
        ("[tunnel.inbound] and [tunnel.outbound]", "SaTable", &[]),
        ("[[policy]]", "PolicyTable", &[]),
    ] {
        let mut told = tags(section(&page, &format!(".Ss {heading}")), "Cm");
        told.extend(tables.iter().map(|table| table.to_string()));
        assert_eq!(told, keys(definition), "{heading}");
    }
    // Every name that a key may have for a value.
    let schema = config::schema();
    for (name, definition) in schema["$defs"].as_object().unwrap() {
        for value in definition["enum"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let is_there =
                page.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').any(|word| word == value);
            assert!(is_there, "{name}: adit.toml(5) does not say {value:?}");
        }
    }
}

/// The literal blocks under a heading.
fn blocks(text: &str) -> Vec<&str> {
    text.split(".Bd -literal -offset indent\n")
        .skip(1)
        .filter_map(|rest| rest.split(".Ed\n").next())
        .collect()
}

/// An example with keys of the right lengths in place of files that are not there.
fn with_keys(example: &str) -> String {
    let (mut text, mut number) = (String::new(), 0u8);
    let encryption_key = if example.contains("aes-256-cbc") { 32 } else { 36 };
    for line in example.lines() {
        let length = match line.split(" = ").next() {
            Some("encryption-key") => encryption_key,
            Some("authentication-key") => 32,
            _ => {
                text += &format!("{line}\n");
                continue;
            }
        };
        assert!(line.contains("\"file:/etc/adit/keys/"), "{line}");
        number += 1;
        let hex: String = (0..length).map(|at: u8| format!("{:02x}", at.wrapping_mul(37) ^ number)).collect();
        text += &format!("{} = \"hex:{hex}\"\n", line.split(" = ").next().unwrap());
    }
    text
}

#[test]
fn every_example_is_a_right_configuration() {
    let page = page("adit.toml.5");
    let (_, examples) = page.split_once("\n.Sh EXAMPLES\n").unwrap();
    let interfaces = blocks(examples)[0];
    let mut tried = 0;
    for example in blocks(examples).into_iter().filter(|block| block.contains("[[tunnel]]")) {
        let own = if example.contains("[[interface]]") { "" } else { interfaces };
        let text = format!("{}\n{own}", with_keys(example));
        let loaded = check::load(&text, false);
        let settings = loaded.unwrap_or_else(|problems| panic!("{problems}\n{text}"));
        assert_eq!(settings.warnings, Vec::<String>::new(), "{text}");
        tried += 1;
    }
    assert!(tried >= 7, "{tried} examples");
}

#[test]
fn adit_prints_its_pages() {
    for (name, file) in [("adit", "adit.1"), ("aditd", "aditd.8"), ("adit.toml", "adit.toml.5")] {
        let printed = run(Command::new(program("adit")).args(["man", name])).stdout;
        assert_eq!(String::from_utf8(printed).unwrap(), page(file));
    }
    let default = run(Command::new(program("adit")).arg("man")).stdout;
    assert_eq!(String::from_utf8(default).unwrap(), page("adit.1"));
    for shell in ["bash", "zsh", "fish"] {
        let printed = run(Command::new(program("adit")).args(["completions", shell])).stdout;
        let printed = String::from_utf8(printed).unwrap();
        for word in ["declare-fresh", "monitor", "lifetime-seconds-hard"] {
            assert!(printed.contains(word), "{shell} does not complete {word}");
        }
    }
}

/// scripts/install puts programs, pages and completions where they are looked for.
#[test]
fn everything_is_installed() {
    let directory = Directory::new();
    let programs = program("adit").parent().unwrap().to_owned();
    let mut install = Command::new(repository().join("scripts/install"));
    install.args(["adit", "--programs"]).arg(programs).env("DESTDIR", directory.path()).env("PREFIX", "/usr");
    run(&mut install);
    for file in [
        "bin/adit",
        "bin/aditd",
        "share/man/man1/adit.1",
        "share/man/man5/adit.toml.5",
        "share/man/man8/aditd.8",
        "share/bash-completion/completions/adit",
        "share/zsh/site-functions/_adit",
        "share/fish/vendor_completions.d/adit.fish",
    ] {
        let length = std::fs::metadata(directory.path().join("usr").join(file)).map_or(0, |file| file.len());
        assert!(length > 1000, "{file}: {length} bytes");
    }
}

/// mdoc(7) as mandoc sees it, where it is installed; headings in brackets are a matter of style.
#[test]
fn the_markup_is_right() {
    for file in ["adit.1", "aditd.8", "adit.toml.5"] {
        let path = repository().join("engine/man").join(file);
        let Ok(lint) = Command::new("mandoc").args(["-Tlint", "-Wwarning"]).arg(&path).output() else {
            return;
        };
        assert!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stdout));
    }
}
