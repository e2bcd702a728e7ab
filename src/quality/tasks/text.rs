//! How alike two texts are, by their words.

use std::collections::HashMap;

/// The harmonic mean of precision and recall of words, as SQuAD's script computes it: lower case, without ASCII
/// punctuation and English articles (Rajpurkar et al. 2016). Two empty texts agree.
pub(super) fn f1(text: &str, reference: &str) -> f64 {
    let words = |text: &str| -> Vec<String> {
        let mut text = text.to_lowercase();
        text.retain(|c| !c.is_ascii_punctuation());
        let words = text.split_whitespace();
        let kept = words.filter(|word| !["a", "an", "the"].contains(word));
        kept.map(str::to_owned).collect()
    };
    let (found, wanted) = (words(text), words(reference));
    if found.is_empty() || wanted.is_empty() {
        return f64::from(found == wanted);
    }
    let mut left: HashMap<&str, usize> = HashMap::new();
    for word in &wanted {
        *left.entry(word).or_default() += 1;
    }
    let common = found.iter().filter(|word| {
        let count = left.get_mut(word.as_str());
        count.is_some_and(|n| {
            let some = *n > 0;
            *n -= usize::from(some);
            some
        })
    });
    harmonic(common.count(), found.len(), wanted.len())
}

/// ROUGE-L: the same of the longest common subsequence of words, which are runs of ASCII letters and digits in lower case,
/// without stemming (Lin 2004; the rouge-score package).
pub(super) fn rouge_l(text: &str, reference: &str) -> f64 {
    let words = |text: &str| -> Vec<String> {
        let text = text.to_lowercase();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric());
        words.filter(|w| !w.is_empty()).map(str::to_owned).collect()
    };
    let (found, wanted) = (words(text), words(reference));
    if found.is_empty() || wanted.is_empty() {
        return 0.0;
    }
    // Lengths of the longest common subsequences with each beginning of the reference, for one more word at a time.
    let mut lengths = vec![0_usize; wanted.len() + 1];
    for word in &found {
        let mut diagonal = 0;
        for (i, other) in wanted.iter().enumerate() {
            let above = lengths[i + 1];
            lengths[i + 1] = if word == other {
                diagonal + 1
            } else {
                above.max(lengths[i])
            };
            diagonal = above;
        }
    }
    harmonic(lengths[wanted.len()], found.len(), wanted.len())
}

fn harmonic(common: usize, found: usize, wanted: usize) -> f64 {
    // 2pr / (p + r) with p = common / found and r = common / wanted.
    2.0 * common as f64 / (found + wanted) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f1_is_that_of_squad() {
        assert_eq!(f1("The cat sat.", "a cat sat"), 1.0);
        // Two of three and two of four words.
        assert!((f1("red cat sat", "red dog sat down") - 4.0 / 7.0).abs() < 1e-12);
        // A word counts as often as it is in both.
        assert!((f1("red red red", "red blue") - 2.0 / 5.0).abs() < 1e-12);
        assert_eq!(f1("the", ""), 1.0);
        assert_eq!(f1("x", ""), 0.0);
    }

    #[test]
    fn rouge_l_is_that_of_the_rouge_score_package() {
        // The quick brown jumps the: 5 words of 9 and 8.
        let value = rouge_l(
            "The quick brown fox jumps over the lazy dog",
            "The quick brown dog jumps on the log.",
        );
        assert!((value - 2.0 * 5.0 / 17.0).abs() < 1e-12, "{value}");
        assert_eq!(rouge_l("Same, words!", "same words"), 1.0);
        assert_eq!(rouge_l("a b c", "c b a"), 1.0 / 3.0);
        assert_eq!(rouge_l("", ""), 0.0);
    }
}
