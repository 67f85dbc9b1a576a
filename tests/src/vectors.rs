//! Test vectors: `vectors/*.json`, counted by `vectors/INDEX.json`, bytes in hexadecimal.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

/// One vector file, and how many of its cases were run or skipped so far.
///
/// A test that forgets cases is caught: [`Vectors::finish`] compares with the index.
pub struct Vectors {
    file: &'static str,
    /// The whole file.
    pub json: Value,
    ran: usize,
    skipped: BTreeMap<&'static str, usize>,
}

impl Vectors {
    /// Reads `vectors/<file>`.
    ///
    /// # Panics
    /// When it cannot be read, or is no JSON.
    pub fn load(file: &'static str) -> Self {
        Self { file, json: read(file), ran: 0, skipped: BTreeMap::new() }
    }

    /// The named groups of cases under `groups`, taken out of the file.
    pub fn take_groups(&mut self) -> BTreeMap<String, Vec<Value>> {
        serde_json::from_value(self.json["groups"].take()).expect("groups are lists of cases")
    }

    /// A list of cases, taken out of the file.
    pub fn take_list(&mut self, name: &str) -> Vec<Value> {
        serde_json::from_value(self.json[name].take()).expect("a list of cases")
    }

    /// Counts a case that was run.
    pub fn ran(&mut self) {
        self.ran += 1;
    }

    /// Counts a case that was not run, and says why.
    pub fn skip(&mut self, reason: &'static str) {
        *self.skipped.entry(reason).or_default() += 1;
    }

    /// Every case of the file was run, or skipped for a reason.
    ///
    /// # Panics
    /// When the index counts more or fewer cases.
    pub fn finish(self) {
        let count = count(self.file);
        let skipped: usize = self.skipped.values().sum();
        println!("{}: {} of {count} run, skipped {:?}", self.file, self.ran, self.skipped);
        assert_eq!(self.ran + skipped, count, "{}: cases run and skipped", self.file);
    }
}

/// How many cases the index says `file` has.
///
/// # Panics
/// When the index does not know the file.
pub fn count(file: &str) -> usize {
    let index = read("INDEX.json");
    let entry = index.as_array().and_then(|files| files.iter().find(|entry| entry["file"] == file));
    let count = entry.and_then(|entry| entry["count"].as_u64());
    count.unwrap_or_else(|| panic!("INDEX.json does not count {file}")) as usize
}

/// The bytes of a hexadecimal field; empty when it is null.
///
/// # Panics
/// When the field is missing or not hexadecimal.
pub fn bytes(case: &Value, field: &str) -> Vec<u8> {
    match &case[field] {
        Value::String(digits) => hex::decode(digits).unwrap_or_else(|e| panic!("{field} of {case}: {e}")),
        Value::Null if case.get(field).is_some() => Vec::new(),
        _ => panic!("no {field} in {case}"),
    }
}

/// A text field.
///
/// # Panics
/// When the field is missing or no text.
pub fn text<'c>(case: &'c Value, field: &str) -> &'c str {
    case[field].as_str().unwrap_or_else(|| panic!("no text {field} in {case}"))
}

fn read(file: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors").join(file);
    let json = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&json).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
