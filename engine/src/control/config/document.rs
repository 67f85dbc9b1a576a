//! From TOML to tables, field by field: every problem is found in one go, and each has its line.

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeArray, DeString, DeTable, DeValue, ValueDeserializer};

use super::File;
use crate::control::problem::{Problem, Problems};

/// The JSON schema of the file, with the keys as the file has them.
pub fn schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(File).to_value();
    rename_properties(&mut schema);
    schema
}

fn rename_properties(value: &mut serde_json::Value) {
    use serde_json::Value;
    match value {
        Value::Object(object) => {
            for (key, inner) in object.iter_mut() {
                match (key.as_str(), inner) {
                    ("properties", Value::Object(properties)) => {
                        *properties = std::mem::take(properties)
                            .into_iter()
                            .map(|(name, v)| (kebab(&name), v))
                            .collect();
                        properties.values_mut().for_each(rename_properties);
                    }
                    ("required", Value::Array(names)) => {
                        for name in names {
                            if let Value::String(text) = name {
                                *text = kebab(text);
                            }
                        }
                    }
                    (_, inner) => rename_properties(inner),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(rename_properties),
        _ => {}
    }
}

fn kebab(name: &str) -> String {
    name.replace('_', "-")
}

/// A parsed file that still knows the line of each field.
pub struct Document<'i> {
    text: &'i str,
    root: DeTable<'i>,
}

impl<'i> Document<'i> {
    /// Reads TOML.
    ///
    /// # Errors
    /// Every syntax error with its line.
    pub fn parse(text: &'i str) -> Result<Self, Problems> {
        let (root, errors) = DeTable::parse_recoverable(text);
        if errors.is_empty() {
            return Ok(Self { text, root: root.into_inner() });
        }
        let problem = |error: toml::de::Error| Problem {
            field: "(file)".into(),
            line: error.span().map(|span| line_of(text, span.start)),
            message: format!("expected TOML: {}", error.message()),
        };
        Err(Problems(errors.into_iter().map(problem).collect()))
    }

    /// The file's tables. Each table is read by itself, so that one mistake does not hide the next table's.
    ///
    /// # Errors
    /// At most one problem for each table, with path and line.
    pub fn file(&self) -> Result<File, Problems> {
        let mut file = File::default();
        let mut problems = Problems::default();
        for (key, value) in &self.root {
            let key: &str = key.get_ref();
            match key {
                "engine" => assign(&mut file.engine, self.one(key.into(), value, &mut problems)),
                "interface" => file.interface = self.many(key, value, &mut problems),
                "tunnel" => file.tunnel = self.many(key, value, &mut problems),
                "policy" => file.policy = self.many(key, value, &mut problems),
                "profile" => match value.get_ref() {
                    DeValue::Table(profiles) => {
                        for (name, profile) in profiles {
                            let name: &str = name.get_ref();
                            if let Some(profile) = self.one(format!("profile.{name}"), profile, &mut problems) {
                                file.profile.insert(name.to_owned(), profile);
                            }
                        }
                    }
                    other => problems.push(key, expected("tables as [profile.NAME]", other)),
                },
                _ => problems.push(
                    key,
                    "expected engine, interface, profile, tunnel or policy, found an unknown table; remove it",
                ),
            }
        }
        self.locate(&mut problems);
        problems.or(file)
    }

    fn many<T: DeserializeOwned>(
        &self,
        key: &str,
        value: &Spanned<DeValue<'i>>,
        problems: &mut Problems,
    ) -> Vec<T> {
        match value.get_ref() {
            DeValue::Array(items) => items
                .iter()
                .enumerate()
                .filter_map(|(index, item)| self.one(format!("{key}[{index}]"), item, problems))
                .collect(),
            other => {
                problems.push(key, expected(&format!("tables as [[{key}]]"), other));
                Vec::new()
            }
        }
    }

    fn one<T: DeserializeOwned>(
        &self,
        path: String,
        value: &Spanned<DeValue<'i>>,
        problems: &mut Problems,
    ) -> Option<T> {
        if !value.get_ref().is_table() {
            problems.push(path, expected("a table", value.get_ref()));
            return None;
        }
        let before = problems.0.len();
        let value = snake(value, &path, problems);
        if problems.0.len() > before {
            return None;
        }
        match serde_path_to_error::deserialize(ValueDeserializer::from(value)) {
            Ok(table) => Some(table),
            Err(error) => {
                let field = join(&path, &kebab(&error.path().to_string()));
                let line = error.inner().span().map(|span| line_of(self.text, span.start));
                let message = dashed(error.inner().message());
                problems.0.push(Problem { field: with_missing(field, &message), line, message });
                None
            }
        }
    }

    /// Fills in the lines of problems that only know their field: the field's own, else its nearest table's.
    pub fn locate(&self, problems: &mut Problems) {
        for problem in problems.0.iter_mut().filter(|problem| problem.line.is_none()) {
            problem.line = self.line(&problem.field);
        }
    }

    fn line(&self, field: &str) -> Option<usize> {
        let mut parts = field.split(['.', '[']).map(|part| part.trim_end_matches(']'));
        let first = parts.next()?;
        let (key, mut value) = self.root.iter().find(|(key, _)| key.get_ref().as_ref() == first)?;
        let mut start = key.span().start;
        for part in parts {
            match value.get_ref() {
                DeValue::Table(table) => {
                    let Some((key, inner)) = table.iter().find(|(key, _)| key.get_ref().as_ref() == part)
                    else {
                        break;
                    };
                    (start, value) = (key.span().start, inner);
                }
                DeValue::Array(items) => {
                    let Some(inner) = part.parse().ok().and_then(|index: usize| items.get(index)) else {
                        break;
                    };
                    (start, value) = (inner.span().start, inner);
                }
                _ => break,
            }
        }
        Some(line_of(self.text, start))
    }
}

fn assign<T>(slot: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *slot = value;
    }
}

/// The same value with `_` for `-` in its keys, which is how the tables above spell them.
fn snake<'i>(value: &Spanned<DeValue<'i>>, path: &str, problems: &mut Problems) -> Spanned<DeValue<'i>> {
    let inner = match value.get_ref() {
        DeValue::Table(table) => {
            let mut renamed = DeTable::new();
            for (key, inner) in table {
                let name: &str = key.get_ref();
                let path = join(path, name);
                if name.contains('_') {
                    problems.push(
                        &path,
                        format!("found an unknown field; expected `{}`, with dashes", kebab(name)),
                    );
                }
                let key = Spanned::new(key.span(), DeString::Owned(name.replace('-', "_")));
                renamed.insert(key, snake(inner, &path, problems));
            }
            DeValue::Table(renamed)
        }
        DeValue::Array(items) => {
            let mut renamed = DeArray::new();
            for (index, item) in items.iter().enumerate() {
                renamed.push(snake(item, &format!("{path}[{index}]"), problems));
            }
            DeValue::Array(renamed)
        }
        other => other.clone(),
    };
    Spanned::new(value.span(), inner)
}

/// `table` and `field` as one path; a path of "." is the table itself.
pub(in crate::control) fn join(table: &str, field: &str) -> String {
    match (table, field) {
        (table, "." | "") => table.to_owned(),
        ("", field) => field.to_owned(),
        (table, field) => format!("{table}.{field}"),
    }
}

/// Serde reports a missing field at its table: name the field.
pub(in crate::control) fn with_missing(table: String, message: &str) -> String {
    match message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
        Some(field) => join(&table, field),
        None => table,
    }
}

fn expected(what: &str, found: &DeValue<'_>) -> String {
    format!("expected {what}, found {}", found.type_str())
}

/// Serde names fields in backticks, and in the tables' own spelling: show them as the file has them.
fn dashed(message: &str) -> String {
    let parts = message.split('`').enumerate();
    parts.map(|(i, part)| if i % 2 == 1 { format!("`{}`", kebab(part)) } else { part.to_owned() }).collect()
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}
