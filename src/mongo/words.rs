//! The server's messages without values of documents.
//!
//! A message may quote the document that it is about. Messages stand in logs, in the status and in dead letters' lists,
//! where no content of a document belongs, so they end where a value may begin.

/// Most characters of a message, so that a log line stays one line.
const LONGEST: usize = 400;

/// The error code whose message names an index before it quotes values: `DuplicateKey`.
const DUPLICATE_KEY: i32 = 11000;

/// The message of a refused write. Such a message is about a document: it ends at the first quote, brace, or value
/// after a colon. Of several reasons, the innermost one before that place stays. The name of a violated index stays.
pub(crate) fn of_write(code: i32, message: &str) -> String {
    if code == DUPLICATE_KEY {
        return shorten(message.split(" dup key").next().unwrap_or_default());
    }
    let mut told = "";
    for reason in message.split(" :: caused by :: ") {
        let end = ["{", "\"", " '", "`", ": "].iter().filter_map(|mark| reason.find(mark)).min();
        told = reason[..end.unwrap_or(reason.len())].trim_end();
        // Behind a value, what looks like a reason may be a part of the value.
        if end.is_some() {
            break;
        }
    }
    shorten(told)
}

/// The message of a failed command. Such a message may quote the whole command, documents included.
pub(crate) fn of_command(message: &str) -> String {
    let end = ["{", "\"", " dup key"].iter().filter_map(|mark| message.find(mark)).min();
    shorten(message[..end.unwrap_or(message.len())].trim_end())
}

/// Cuts a text after [`LONGEST`] characters.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_write_is_told_without_a_value() {
        for (code, message, expected) in [
            (
                11000,
                "E11000 duplicate key error collection: a.b index: email_1 dup key: { email: \"secret\" }",
                "E11000 duplicate key error collection: a.b index: email_1",
            ),
            (121, "Document failed validation", "Document failed validation"),
            (
                28,
                "Plan executor error during update :: caused by :: Cannot create field 'x' in element {a: \"secret\"}",
                "Cannot create field",
            ),
            (28, "Cannot create field 'x' in element {a: \" :: caused by :: secret\"}", "Cannot create field"),
            (17262, "language override unsupported: secret", "language override unsupported"),
            (
                16755,
                "Can't extract geo keys: { _id: 1, loc: \"secret\" }  Point must be an array",
                "Can't extract geo keys",
            ),
            (2, "unknown operator: $secret", "unknown operator"),
        ] {
            assert_eq!(of_write(code, message), expected);
        }
    }

    #[test]
    fn a_failed_command_is_told_without_its_documents() {
        for (message, expected) in [
            (
                "not authorized on a to execute command { insert: \"b\", documents: [ { x: \"secret\" } ] }",
                "not authorized on a to execute command",
            ),
            ("Failing command via 'failCommand' failpoint", "Failing command via 'failCommand' failpoint"),
            (
                "E11000 duplicate key error collection: a.b index: x dup key: secret",
                "E11000 duplicate key error collection: a.b index: x",
            ),
        ] {
            assert_eq!(of_command(message), expected);
        }
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let long = "ä".repeat(LONGEST + 1);
        assert_eq!(of_command(&long).chars().count(), LONGEST + 1);
        assert_eq!(of_command(&long[..2 * LONGEST]), long[..2 * LONGEST]);
    }
}
