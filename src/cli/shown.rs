//! Text of foreign origin, made safe for a terminal: `_id`s, messages of servers, names.

use std::fmt::Write as _;

/// Replaces characters that would change the terminal, or the order in which text is read.
pub(super) fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if is_harmless(character) {
            shown.push(character);
        } else {
            write!(shown, "\\u{{{:x}}}", u32::from(character)).expect("writing to a string does not fail");
        }
    }
    shown
}

/// The same for text of several lines.
pub(super) fn shown_lines(text: &str) -> String {
    text.lines().map(shown).collect::<Vec<_>>().join("\n")
}

/// Control characters include the second set (C1). The others set the direction of text.
fn is_harmless(character: char) -> bool {
    let is_direction =
        matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !character.is_control() && !is_direction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_change_the_terminal_is_spelled_out() {
        assert_eq!(shown("plain ü 漢 😀"), "plain ü 漢 😀");
        assert_eq!(shown("\u{1b}[31mred\r\nnext\u{9b}2J"), "\\u{1b}[31mred\\u{d}\\u{a}next\\u{9b}2J");
        assert_eq!(shown_lines("one\ntwo\u{7}"), "one\ntwo\\u{7}");
        assert_eq!(shown("a\u{202e}b\u{2066}c\u{7f}"), "a\\u{202e}b\\u{2066}c\\u{7f}");
    }
}
