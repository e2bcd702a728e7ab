//! GPTQModel's rules by layer, of which the first that fits counts.

use std::fs;

use serde_json::{Value, json};

use super::common::{assert_fails, open};
use super::stored::{Layer, gptq, read, with};

#[test]
fn rules_of_gptqmodel_are_followed() {
    let layer = Layer::new(8, 64);
    let rules = json!({
        "-:model\\.layers\\.0\\.": {},
        "+:.*up_proj$": {"bits": 8, "group_size": 64},
        ".*": {"bits": 4},
    });
    let (_, rows) = read(with(gptq(json!({"dynamic": rules})), layer.gptq(1, None)));
    assert_eq!(rows, layer.weights(|k| k / 64));
    // Of several rules that fit, the first in the file counts, not the first by the alphabet.
    let in_order = |rules: &str| {
        let folder = with(gptq(json!({"dynamic": "RULES"})), layer.gptq(1, None));
        let path = folder.path().join("config.json");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"RULES\"", rules)).unwrap();
        folder
    };
    let eight = r#""bits": 8, "group_size": 64"#;
    for rules in [
        format!(r#"{{".*up_proj$": {{{eight}}}, "+:.*": {{"bits": 4}}}}"#),
        format!(r#"{{".*": {{{eight}}}, "-:.*up_proj": {{}}}}"#),
    ] {
        let folder = in_order(&rules);
        assert_eq!(read(&folder).1, layer.weights(|k| k / 64), "{rules}");
        // The same in a file of settings alone.
        let path = folder.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["quantization_config"] = Value::Null;
        fs::write(&path, config.to_string()).unwrap();
        let settings =
            format!(r#"{{"bits": 4, "group_size": 32, "sym": false, "dynamic": {rules}}}"#);
        fs::write(folder.path().join("quantize_config.json"), settings).unwrap();
        assert_eq!(read(&folder).1, layer.weights(|k| k / 64), "{rules}");
    }
    let first = format!(r#"{{"-:.*up_proj": {{}}, ".*": {{{eight}}}}}"#);
    assert_fails(open(in_order(&first)), 65, "denies");
    let denied = with(
        gptq(json!({"dynamic": {"-:.*up_proj": {}}})),
        layer.gptq(1, None),
    );
    assert_fails(open(&denied), 65, "denies");
    let broken = with(gptq(json!({"dynamic": {"(": {}}})), layer.gptq(1, None));
    assert_fails(open(&broken), 65, "the pattern '('");
}
