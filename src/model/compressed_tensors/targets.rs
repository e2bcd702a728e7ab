//! Which scheme a module has: `utils/match.py` of compressed-tensors.

use fancy_regex::Regex;

use super::config::{Format, QuantizationConfig, Scheme};

/// What a target of a group, or of `ignore`, says about a module; the more special wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Match {
    Class,
    Pattern,
    Name,
}

impl QuantizationConfig {
    /// The scheme of the linear layer `module`, as in `model.layers.0.mlp.up_proj`; `None` for one that is left alone. A
    /// target is a module's full name, a pattern after `re:` that fits from its start on, or the class `Linear`; names go
    /// before patterns, patterns before classes, and what `ignore` names, however it does, is left alone.
    ///
    /// # Errors
    /// Names the pattern that is none.
    pub fn scheme_of(&self, module: &str) -> Result<Option<&Scheme>, String> {
        if best(&self.ignore, module)?.is_some() {
            return Ok(None);
        }
        let mut found: Option<(Match, &Scheme)> = None;
        for (_, scheme) in &self.config_groups {
            if let Some(matched) = best(&scheme.targets, module)?
                && found.is_none_or(|(before, _)| matched > before)
            {
                found = Some((matched, scheme));
            }
        }
        Ok(found.map(|(_, scheme)| scheme))
    }

    /// The form of a group's tensors.
    pub fn format_of<'a>(&'a self, scheme: &'a Scheme) -> &'a Format {
        scheme.format.as_ref().unwrap_or(&self.format)
    }
}

fn best(targets: &[String], module: &str) -> Result<Option<Match>, String> {
    let mut best = None;
    for target in targets {
        best = best.max(matches(target, module)?);
    }
    Ok(best)
}

fn matches(target: &str, module: &str) -> Result<Option<Match>, String> {
    if let Some(pattern) = target.strip_prefix("re:") {
        // Python's `re.match` asks for the pattern at the start and for nothing about the end.
        let fault = |e: fancy_regex::Error| format!("the pattern '{target}': {e}");
        let regex = Regex::new(&format!(r"\A(?:{pattern})")).map_err(fault)?;
        return Ok(regex
            .is_match(module)
            .map_err(fault)?
            .then_some(Match::Pattern));
    }
    Ok(if target == module {
        Some(Match::Name)
    } else {
        // Every layer that is asked about is of this class; `Module` is the class that all classes are of.
        ["Linear", "Module"]
            .contains(&target)
            .then_some(Match::Class)
    })
}

#[cfg(test)]
mod tests {
    use super::super::config::Arguments;
    use super::*;

    fn config(groups: &[(&[&str], u32)], ignore: &[&str]) -> QuantizationConfig {
        let owned = |texts: &[&str]| texts.iter().map(|&t| t.to_owned()).collect::<Vec<_>>();
        let group = |&(targets, bits): &(&[&str], u32)| {
            let scheme = Scheme::of_linear(Arguments::integers(bits, true, None), None);
            let scheme = Scheme {
                targets: owned(targets),
                ..scheme
            };
            (format!("group_{bits}"), scheme)
        };
        let mut config = QuantizationConfig::of_one(
            Format::PackQuantized,
            Scheme::of_linear(Arguments::integers(8, true, None), None),
            owned(ignore),
        );
        config.config_groups = groups.iter().map(group).collect();
        config
    }

    fn bits(config: &QuantizationConfig, module: &str) -> Option<u32> {
        let scheme = config.scheme_of(module).unwrap();
        scheme.map(|scheme| scheme.weights.as_ref().unwrap().num_bits)
    }

    #[test]
    fn names_go_before_patterns_and_patterns_before_classes() {
        let config = config(
            &[
                (&["Linear"], 8),
                (&["re:.*down_proj"], 4),
                (&["model.layers.1.mlp.down_proj"], 2),
            ],
            &["lm_head", r"re:model\.layers\.2\."],
        );
        assert_eq!(bits(&config, "model.layers.0.mlp.up_proj"), Some(8));
        assert_eq!(bits(&config, "model.layers.0.mlp.down_proj"), Some(4));
        assert_eq!(bits(&config, "model.layers.1.mlp.down_proj"), Some(2));
        assert_eq!(bits(&config, "model.layers.2.mlp.down_proj"), None);
        assert_eq!(bits(&config, "lm_head"), None);
    }

    #[test]
    fn patterns_are_pythons_anchored_at_the_start_alone() {
        let with = |pattern: &str| config(&[(&[pattern], 4)], &[]);
        let module = "model.layers.10.self_attn.q_proj";
        for (pattern, fits) in [
            ("re:.*q_proj$", true),
            ("re:q_proj", false),
            ("re:model", true),
            ("re:a|model", true),
            (r"re:model\.layers\.1\.", false),
            ("re:(?!.*mlp).*", true),
            ("re:(?!.*self_attn).*", false),
            ("q_proj", false),
        ] {
            assert_eq!(bits(&with(pattern), module).is_some(), fits, "{pattern}");
        }
        let error = with("re:(").scheme_of(module).unwrap_err();
        assert!(error.contains("re:("), "{error}");
    }
}
