//! Takes a TOML table apart key by key, and collects all problems with line numbers.
//!
//! A key without a reader is a problem: an unknown key. Text may refer to environment variables as `${NAME}`.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Problem;
use super::environment::Variables;

/// A file's text, and the problems found until now.
pub(super) struct Reader<'t> {
    text: &'t str,
    variables: &'t Variables,
    pub(super) problems: Vec<Problem>,
}

/// A value and its place in the file.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
}

/// A table with the keys not taken yet.
pub(super) struct Table<'t> {
    entries: DeTable<'t>,
    /// The table's name in messages, such as `[hub]` or `spoke DFW`.
    pub(super) name: String,
    pub(super) span: Range<usize>,
    taken: Vec<&'static str>,
}

impl<'t> Reader<'t> {
    /// Parses the text. Each line with a syntax error is a problem.
    pub(super) fn parse(text: &'t str, variables: &'t Variables) -> (Self, Table<'t>) {
        let mut reader = Self { text, variables, problems: Vec::new() };
        let (root, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            // `message` instead of the error's Display: Display quotes the line, and a line may contain a password.
            reader.problem(&error.span().unwrap_or_default(), format!("this is not TOML: {}", error.message()));
        }
        // A mistake often causes several errors in a line; the first says enough.
        reader.problems.dedup_by_key(|problem| problem.line);
        let span = root.span();
        let root = Table { entries: root.into_inner(), name: "the file".to_owned(), span, taken: Vec::new() };
        (reader, root)
    }

    pub(super) fn problem(&mut self, span: &Range<usize>, message: String) {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        self.problems.push(Problem { line: Some(line), message });
    }

    /// Takes a section of the root; a missing section is an empty table.
    pub(super) fn section(&mut self, root: &mut Table<'t>, key: &'static str) -> Table<'t> {
        let name = format!("[{key}]");
        match root.take(key) {
            Some((DeValue::Table(entries), span)) => Table { entries, name, span, taken: Vec::new() },
            Some((other, span)) => {
                self.problem(&span, format!("{key} is {}, but must be a table: write [{key}]", kind(&other)));
                Table::empty(name)
            }
            None => Table::empty(name),
        }
    }

    /// Takes the tables of a section that may occur many times.
    pub(super) fn sections(&mut self, root: &mut Table<'t>, key: &'static str) -> Vec<Table<'t>> {
        let name = format!("[[{key}]]");
        let (array, span) = match root.take(key) {
            None => return Vec::new(),
            Some((DeValue::Array(array), span)) => (array, span),
            Some((_, span)) => {
                self.problem(&span, format!("write {name} with two brackets: there may be many"));
                return Vec::new();
            }
        };
        let mut tables = Vec::new();
        for item in array {
            let item_span = item.span();
            match item.into_inner() {
                DeValue::Table(entries) => {
                    tables.push(Table { entries, name: name.clone(), span: item_span, taken: Vec::new() });
                }
                other => {
                    self.problem(&span, format!("{key} holds {}, but must hold tables: write {name}", kind(&other)))
                }
            }
        }
        tables
    }

    /// Takes a text, with its environment variables replaced by their values.
    pub(super) fn text(&mut self, table: &mut Table<'t>, key: &'static str) -> Option<At<String>> {
        let (value, span) = table.take(key)?;
        match value {
            DeValue::String(text) => self.expand(&table.name, key, &text, span),
            other => {
                self.problem(&span, format!("{}: {key} is {}, but must be a text in quotes", table.name, kind(&other)));
                None
            }
        }
    }

    pub(super) fn boolean(&mut self, table: &mut Table<'t>, key: &'static str) -> Option<bool> {
        let (value, span) = table.take(key)?;
        let DeValue::Boolean(value) = value else {
            self.problem(&span, format!("{}: {key} must be true or false", table.name));
            return None;
        };
        Some(value)
    }

    /// Takes a whole number within bounds.
    pub(super) fn number(
        &mut self,
        table: &mut Table<'t>,
        key: &'static str,
        bounds: std::ops::RangeInclusive<usize>,
    ) -> Option<At<usize>> {
        let (value, span) = table.take(key)?;
        let number = match &value {
            DeValue::Integer(number) => number.as_str().parse().ok(),
            _ => None,
        };
        let number = number.filter(|number| bounds.contains(number));
        if number.is_none() {
            let (low, high) = (bounds.start(), bounds.end());
            self.problem(&span, format!("{}: {key} must be a whole number from {low} to {high}", table.name));
        }
        Some(At { value: number?, span })
    }

    pub(super) fn texts(&mut self, table: &mut Table<'t>, key: &'static str) -> Option<At<Vec<At<String>>>> {
        let (value, span) = table.take(key)?;
        let DeValue::Array(array) = value else {
            self.problem(&span, format!("{}: {key} must be a list: write {key} = [\"…\"]", table.name));
            return None;
        };
        let mut texts = Vec::new();
        for item in array {
            let item_span = item.span();
            match item.into_inner() {
                DeValue::String(text) => texts.extend(self.expand(&table.name, key, &text, item_span)),
                other => {
                    let message = format!("{}: {key} holds {}, but must hold texts", table.name, kind(&other));
                    self.problem(&item_span, message);
                }
            }
        }
        Some(At { value: texts, span })
    }

    /// Reports the remaining keys as unknown, with a suggestion or the known keys.
    pub(super) fn finish(&mut self, table: Table<'t>) {
        for (key, _) in table.entries {
            let name = key.get_ref().as_ref();
            let similar = table.taken.iter().map(|known| (strsim::damerau_levenshtein(name, known), known));
            let hint = match similar.min() {
                Some((distance, known)) if distance <= 2 => format!("; did you mean {known}?"),
                _ => format!("; known here: {}", table.taken.join(", ")),
            };
            self.problem(&key.span(), format!("{}: unknown key {name}{hint}", table.name));
        }
    }

    /// Replaces `${NAME}` by the environment variable's value, and `$${` by `${`.
    fn expand(&mut self, table: &str, key: &str, text: &str, span: Range<usize>) -> Option<At<String>> {
        let mut value = String::new();
        let mut missing = false;
        let mut rest = text;
        while let Some(start) = rest.find("${") {
            if let Some(escaped) = rest[..start].strip_suffix('$') {
                value.push_str(escaped);
                value.push_str("${");
                rest = &rest[start + 2..];
                continue;
            }
            value.push_str(&rest[..start]);
            let after = &rest[start + 2..];
            let Some((name, remaining)) = after.split_once('}') else {
                self.problem(
                    &span,
                    format!("{table}: {key} has ${{ without }}; write $${{ for the two characters themselves"),
                );
                return None;
            };
            match self.variables.get(name) {
                Some(variable) => value.push_str(variable),
                None => {
                    let message = format!("{table}: {key} names the environment variable {name:?}, which is not set");
                    self.problem(&span, message);
                    missing = true;
                }
            }
            rest = remaining;
        }
        value.push_str(rest);
        if missing { None } else { Some(At { value, span }) }
    }
}

impl<'t> Table<'t> {
    fn empty(name: String) -> Self {
        Self { entries: DeTable::new(), name, span: 0..0, taken: Vec::new() }
    }

    fn take(&mut self, key: &'static str) -> Option<(DeValue<'t>, Range<usize>)> {
        self.taken.push(key);
        let place = Spanned::new(0..0, key.into());
        let value = self.entries.remove(&place)?;
        let span = value.span();
        Some((value.into_inner(), span))
    }
}

/// The type of a value with its article, for messages.
fn kind(value: &DeValue<'_>) -> String {
    let kind = value.type_str();
    let article = if kind.starts_with(['a', 'i']) { "an" } else { "a" };
    format!("{article} {kind}")
}
