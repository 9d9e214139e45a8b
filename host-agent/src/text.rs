//! Makes text from outside safe to show: it has a limit, and cannot affect a terminal.
//!
//! Text from a peer, a toolstack or a file ends up in logs, journals and on an operator's terminal.  Escape
//! codes there can clear the screen and write any line, and direction marks can reverse one.

/// Longest reason or message, in bytes.
pub const REASON_MOST: usize = 1000;

/// The text with every invisible character written as `\u{…}`, cut off at about `most` bytes.
#[must_use]
pub fn clean(text: &str, most: usize) -> String {
    let mut clean = String::with_capacity(text.len().min(most));
    for c in text.chars() {
        if clean.len().saturating_add(c.len_utf8()) > most {
            clean.push('…');
            break;
        }
        if is_unseen(c) {
            clean.extend(c.escape_unicode());
        } else {
            clean.push(c);
        }
    }
    clean
}

/// Whether a text is within the limit and has no invisible characters.
#[must_use]
pub fn is_fit(text: &str, most: usize) -> bool {
    text.len() <= most && !text.chars().any(is_unseen)
}

/// Control characters (C0, DEL, C1), line ends, direction marks, joiners, fillers and tags.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::{REASON_MOST, clean, is_fit};

    #[test]
    fn what_a_terminal_would_obey_is_written_out() {
        let nasty = "a\u{1b}[2J\n\u{9b}1m\u{202e}b\u{7f}";
        let shown = clean(nasty, 100);
        assert_eq!(shown, r"a\u{1b}[2J\u{a}\u{9b}1m\u{202e}b\u{7f}");
        assert!(is_fit(&shown, 100) && !is_fit(nasty, 100));
        assert_eq!(clean("Grüße, 客", 100), "Grüße, 客");
    }

    #[test]
    fn it_has_an_end_and_no_half_letters() {
        for text in ["x".repeat(5000), "ü".repeat(5000), "\u{1b}".repeat(5000)] {
            let shown = clean(&text, REASON_MOST);
            assert!(shown.len() <= REASON_MOST + 8 && shown.ends_with('…'));
        }
        assert!(!is_fit("abc", 2) && is_fit("abc", 3));
    }
}
