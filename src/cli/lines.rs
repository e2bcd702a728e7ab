//! Text in lines that fit a terminal.

/// A text in lines of at most `width` characters, broken at blanks, all but the first indented by `indent`. A word too long
/// for a line has one to itself, whole: it may be a path. What belongs together stays together: a sign and its number, a
/// number and its percent.
pub(super) fn wrapped(text: &str, indent: usize, width: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in together(text) {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(&word);
            }
            Some(_) => lines.push(format!("{}{word}", " ".repeat(indent))),
            None => lines.push(word),
        }
    }
    let lines: Vec<&str> = lines.iter().map(|line| line.trim_end()).collect();
    lines.join("\n")
}

/// The words of a text, those joined that no line may part.
fn together(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for word in text.split(' ') {
        let clings = word.starts_with('±') || word.starts_with('%') || word == ":";
        match words.last_mut() {
            Some(before) if clings || before.ends_with('±') || before.ends_with(" :") => {
                before.push(' ');
                before.push_str(word);
            }
            _ => words.push(word.to_owned()),
        }
    }
    words
}

/// A name in a column of `column` characters and what there is to say of it, a line of its own each, ended.
pub(super) fn entry(name: &str, column: usize, said: &str, width: usize) -> String {
    wrapped(&format!("{name:<column$} {said}"), column + 1, width) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_fit_and_nothing_is_lost() {
        let text = "perplexity 20.91 ± 0.04 of a text, 99.5 % of it";
        for width in [8, 12, 20, 30, 80] {
            let found = wrapped(text, 2, width);
            let words = |text: &str| {
                text.split_whitespace()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            };
            assert_eq!(words(&found), words(text));
            let longest = found.lines().map(|line| line.chars().count()).max();
            assert!(longest <= Some(width.max(14)), "{found}");
            assert!(found.contains("20.91 ± 0.04") && found.contains("99.5 %"));
        }
        assert_eq!(wrapped("one two three", 2, 8), "one two\n  three");
        assert_eq!(wrapped("a /a/long/path b", 2, 8), "a\n  /a/long/path\n  b");
    }

    #[test]
    fn what_is_said_of_a_name_stands_in_its_own_column() {
        assert_eq!(entry("name", 6, "short", 20), "name   short\n");
        assert_eq!(
            entry("name", 6, "one two three", 16),
            "name   one two\n       three\n"
        );
    }
}
