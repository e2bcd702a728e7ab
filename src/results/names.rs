//! What models are called where several stand side by side.

/// Characters of a digest that stand behind a name which another model has too.
const OF_DIGEST: usize = 6;

/// The shortest name of each model, given by name and digest, that none of the others could be meant by: the last part of a
/// path, as many of the parts before it as it takes, and where whole names are the same, the first characters of the
/// digest.
pub(super) fn shortest(models: &[(&str, &str)]) -> Vec<String> {
    let others = |own: usize| {
        let others = models.iter().enumerate();
        others
            .filter(move |(place, _)| *place != own)
            .map(|(_, model)| model)
    };
    let short = |(place, (name, digest)): (usize, &(&str, &str))| {
        let parts = name.split('/').count();
        let alone = (1..=parts)
            .map(|count| last_parts(name, count))
            .find(|short| {
                let count = short.split('/').count();
                others(place).all(|(other, _)| last_parts(other, count) != *short)
            });
        let twins = || others(place).any(|(other, of)| other == name && of != digest);
        match alone {
            Some(short) => short.to_owned(),
            None if twins() => format!("{name} {}", beginning(digest)),
            None => (*name).to_owned(),
        }
    };
    models.iter().enumerate().map(short).collect()
}

/// The last `count` parts of a path, or all of it if it has fewer.
fn last_parts(path: &str, count: usize) -> &str {
    let cut = path.rmatch_indices('/').nth(count.saturating_sub(1));
    cut.map_or(path, |(at, _)| &path[at + 1..])
}

/// The first characters of a hash, without its kind.
fn beginning(digest: &str) -> &str {
    let hash = digest.rsplit(':').next().unwrap_or(digest);
    hash.get(..OF_DIGEST).unwrap_or(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(models: &[(&str, &str)]) -> Vec<String> {
        shortest(models)
    }

    #[test]
    fn one_part_is_enough_where_it_differs() {
        let found = names(&[("Qwen/Qwen3-0.6B", "b3:1"), ("tiny", "b3:2")]);
        assert_eq!(found, ["Qwen3-0.6B", "tiny"]);
        assert_eq!(names(&[("a/b/model", "b3:1")]), ["model"]);
        assert!(names(&[]).is_empty());
    }

    #[test]
    fn as_many_parts_are_named_as_tell_models_apart() {
        let found = names(&[
            ("a/model", "b3:1"),
            ("b/model", "b3:2"),
            ("c/other", "b3:3"),
        ]);
        assert_eq!(found, ["a/model", "b/model", "other"]);
        let found = names(&[("x/a/model", "b3:1"), ("y/a/model", "b3:2")]);
        assert_eq!(found, ["x/a/model", "y/a/model"]);
        let found = names(&[("model", "b3:1"), ("a/model", "b3:2")]);
        assert_eq!(found, ["model", "a/model"]);
    }

    #[test]
    fn models_of_one_name_are_told_apart_by_content() {
        let found = names(&[("a/model", "b3:0123456789"), ("a/model", "b3:abc")]);
        assert_eq!(found, ["a/model 012345", "a/model abc"]);
        // One model twice has no other name.
        let found = names(&[("a/model", "b3:1"), ("a/model", "b3:1")]);
        assert_eq!(found, ["a/model", "a/model"]);
    }
}
