//! Why a model computes what is no number.

use crate::error::Error;
use crate::model::Model;
use crate::scheme::DType;

/// An error as it is, but for [`Error::NotFinite`]: of that, the first weight that is no number, if there is one, or what
/// remains to blame. The weights are read for it, all of them if need be.
pub(super) fn explained(error: Error, model: &Model, act: DType) -> Error {
    let Error::NotFinite(what) = error else {
        return error;
    };
    if let Err(found) = model.weights.check_finite(&model.config) {
        // Of this model alone, so that a study of several goes on.
        return Error::NotFinite(found.to_string());
    }
    let advice = match act {
        DType::F16 => "; activations in f16 end at 65504: try --dtype bf16 or f32",
        DType::BF16 | DType::F32 => "",
    };
    Error::NotFinite(format!(
        "{}: {what}, though every weight is a number{advice}",
        model.name
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ModelSpec, WeightsChoice};

    #[test]
    fn where_every_weight_is_a_number_the_activations_are_to_blame() {
        let model = Model::open(&ModelSpec {
            source: "tiny".into(),
            revision: None,
            weights: WeightsChoice::AsStored,
            tokenizer: None,
        })
        .unwrap();
        let told = |act| {
            let error = Error::NotFinite("a logit is NaN".into());
            let error = explained(error, &model, act);
            assert_eq!(error.exit_code(), 65);
            error.to_string()
        };
        assert!(told(DType::F16).contains("try --dtype bf16 or f32"));
        assert_eq!(
            told(DType::F32),
            format!(
                "{}: a logit is NaN, though every weight is a number",
                model.name
            )
        );
        let other = explained(Error::Config("no fit".into()), &model, DType::F16);
        assert_eq!(other.to_string(), "no fit");
    }
}
