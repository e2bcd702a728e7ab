//! WikiText as its raw file has it, and what the papers' code and lm_eval make of it.

/// Every line begins with a space, and some are headings like ` = Title = `.
pub(super) fn is_raw(text: &str) -> bool {
    let heading = |line: &str| line.starts_with(" = ") && line.trim_end().ends_with(" =");
    text.lines()
        .all(|line| line.starts_with(' ') || line.is_empty())
        && text.lines().any(heading)
}

/// The rows of the data set, joined with blank lines as the papers' code joins them: a line of blanks is the empty row,
/// any other keeps its newline.
pub(super) fn joined_rows(raw: &str) -> String {
    let rows: Vec<&str> = raw
        .split_inclusive('\n')
        .map(|row| if row.trim().is_empty() { "" } else { row })
        .collect();
    rows.join("\n\n")
}

/// The raw file that rows of the data set were made of.
#[cfg(feature = "hub")]
pub(super) fn raw_of_rows(rows: &[String]) -> String {
    rows.iter()
        .map(|row| if row.is_empty() { " \n" } else { row })
        .collect()
}

/// The pages of a raw file, cut before every heading of the first level as the data set
/// `EleutherAI/wikitext_document_level` cuts them (its `_generate_examples`).
pub(super) fn pages(raw: &str) -> Vec<String> {
    let mut pages = Vec::new();
    let mut page: Vec<&str> = Vec::new();
    for line in raw.split('\n') {
        let heading = line.replace("= = =", "===").replace("= =", "==");
        let heading = heading.trim();
        if heading.starts_with("= ") && heading.ends_with(" =") {
            pages.push(std::mem::take(&mut page).join("\n"));
        }
        page.push(line);
    }
    pages.push(page.join("\n"));
    pages.retain(|page| !page.trim().is_empty());
    pages
}

/// A page as lm_eval scores it: written as people write, without the blanks that WikiText puts around punctuation
/// (`wikitext_detokenizer` of its task `wikitext`, version 2, rule after rule in its order; its second rule asks for
/// slashes around a quote and a digit by a slip, and does nothing).
pub(super) fn detokenised(page: &str) -> String {
    let replaced = |text: String, rules: &[(&str, &str)]| {
        rules
            .iter()
            .fold(text, |text, (from, to)| text.replace(from, to))
    };
    let mut text = replaced(
        page.to_owned(),
        &[
            ("s '", "s'"),
            (" @-@ ", "-"),
            (" @,@ ", ","),
            (" @.@ ", "."),
            (" : ", ": "),
            (" ; ", "; "),
            (" . ", ". "),
            (" ! ", "! "),
            (" ? ", "? "),
            (" , ", ", "),
        ],
    );
    for (open, close) in [('(', ')'), ('[', ']'), ('{', '}'), ('"', '"'), ('\'', '\'')] {
        text = tightened(&text, open, close);
    }
    replaced(
        text,
        &[
            ("= = = =", "===="),
            ("= = =", "==="),
            ("= =", "=="),
            (" ° ", "°"),
            (" \n", "\n"),
            ("\n ", "\n"),
            (" N ", " 1 "),
            (" 's", "'s"),
        ],
    )
}

/// Takes away the blanks within pairs of marks: from an opening mark to the next closing one, then on behind it.
fn tightened(text: &str, open: char, close: char) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(open) {
        let (before, from) = rest.split_at(at + open.len_utf8());
        let Some(end) = from.find(close) else { break };
        out += before;
        out += from[..end].trim();
        out.push(close);
        rest = &from[end + close.len_utf8()..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: &str = " \n = Robert = \n \n He was , he said , an actor . \n";

    #[test]
    fn rows_are_joined_as_the_data_set_has_them() {
        assert!(is_raw(RAW));
        assert!(!is_raw("Plain text.\n = Heading = \n"));
        assert!(!is_raw(" every line indented\n but no heading\n"));
        assert_eq!(
            joined_rows(RAW),
            "\n\n = Robert = \n\n\n\n\n He was , he said , an actor . \n"
        );
    }

    #[test]
    fn pages_begin_at_headings_of_the_first_level() {
        let raw = " \n = One = \n \n a b \n = = Part = = \n c \n = Two = \n d ";
        let found = pages(raw);
        assert_eq!(
            found,
            [" = One = \n \n a b \n = = Part = = \n c ", " = Two = \n d "]
        );
        assert_eq!(pages("none"), ["none"]);
    }

    // What lm_eval 0.4.13's own `wikitext_detokenizer` gives for these.
    #[test]
    fn pages_are_written_as_lm_eval_writes_them() {
        for (page, expected) in [
            (
                " He was , he said ( in 1 @,@ 000 words ) , an \" actor \" . \n",
                " He was, he said (in 1,000 words), an \"actor\".\n",
            ),
            (" = = Part = = \n x 's y \n", " == Part ==\nx's y\n"),
            (
                "the boys ' toys : 20 @-@ 30 ° C N x",
                "the boys' toys: 20-30°C 1 x",
            ),
            ("( ) [ a ] { b } ( open", "() [a] {b} ( open"),
        ] {
            assert_eq!(detokenised(page), expected);
        }
    }
}
