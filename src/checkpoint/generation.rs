//! How a checkpoint wants to be sampled: `generation_config.json`, as plain data.

use serde_json::{Map, Value};

use super::error::CheckpointError;

/// Sampling values that come with a checkpoint; a field the file leaves out has the value the reference falls back to. These and
/// their ranges are the sampler's (`diffusion`, which this room does not know): a test in `cli` holds them together.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationDefaults {
    /// Most denoising steps per canvas, `≥ 1`.
    pub max_denoising_steps: usize,
    /// Temperature approached at the last step, `0 ≤ t_min < t_max`.
    pub t_min: f32,
    /// Temperature of the first step.
    pub t_max: f32,
    /// Nats of entropy that may be accepted per step, `> 0`.
    pub entropy_bound: f32,
    /// Equal argmax canvases in a row wanted before a canvas may stop.
    pub stability_threshold: usize,
    /// Mean entropy in nats below which a canvas may stop, `> 0`.
    pub confidence_threshold: f32,
    /// Tokens that end an answer, in the file's order; each is below the vocabulary's size. May be empty.
    pub end_tokens: Vec<u32>,
}

impl Default for GenerationDefaults {
    fn default() -> Self {
        Self {
            max_denoising_steps: 48,
            t_min: 0.4,
            t_max: 0.8,
            entropy_bound: 0.1,
            stability_threshold: 1,
            confidence_threshold: 0.005,
            end_tokens: Vec::new(),
        }
    }
}

/// The one sampler the model was trained for.
const SAMPLER: &str = "EntropyBoundSamplerConfig";

/// More steps than any canvas could use; a value beyond it is a slip, not a wish. A request may ask for fewer (the API's 1,024):
/// it can cost others, while a checkpoint is the operator's choice. The sampler's own limit is arithmetic and far higher.
const MOST_STEPS: u64 = 10_000;

impl GenerationDefaults {
    /// Reads generation_config.json (`None` where there is none); end tokens missing there come from config.json. `name` is what
    /// errors call the file.
    ///
    /// # Errors
    /// [`CheckpointError::Value`] for a value of the wrong type or out of the reference's ranges, for an end token outside
    /// the vocabulary, and for another sampler than the entropy-bound one.
    pub(crate) fn from_json(
        name: &str,
        file: Option<&Value>,
        config: &Value,
        vocabulary: usize,
    ) -> Result<Self, CheckpointError> {
        Self::read(file, config, vocabulary).map_err(|(key, why)| CheckpointError::Value {
            file: name.to_owned(),
            key,
            why,
        })
    }

    fn read(file: Option<&Value>, config: &Value, vocabulary: usize) -> Result<Self, Wrong> {
        let empty = Map::new();
        let map = match file {
            None => &empty,
            Some(Value::Object(map)) => map,
            Some(other) => return Err(wrong("(file)", format!("an object was expected, not {}", kind(other)))),
        };
        let sampler = match map.get("sampler_config") {
            None | Some(Value::Null) => &empty,
            Some(Value::Object(sampler)) => sampler,
            Some(other) => return Err(wrong("sampler_config", format!("an object was expected, not {}", kind(other)))),
        };
        if let Some(name) = sampler.get("_cls_name").filter(|name| name.as_str() != Some(SAMPLER)) {
            return Err(wrong("sampler_config._cls_name", format!("{name} is not known; only {SAMPLER} is")));
        }
        let own = Self::default();
        let read = Self {
            max_denoising_steps: count(map, "max_denoising_steps", own.max_denoising_steps, 1)?,
            t_min: number(map, "t_min", "t_min", own.t_min)?,
            t_max: number(map, "t_max", "t_max", own.t_max)?,
            entropy_bound: number(sampler, "entropy_bound", "sampler_config.entropy_bound", own.entropy_bound)?,
            stability_threshold: count(map, "stability_threshold", own.stability_threshold, 0)?,
            confidence_threshold: number(
                map,
                "confidence_threshold",
                "confidence_threshold",
                own.confidence_threshold,
            )?,
            end_tokens: end_tokens(map, config, vocabulary)?,
        };
        if !(0.0 <= read.t_min && read.t_min < read.t_max) {
            return Err(wrong("t_min", format!("0 ≤ t_min < t_max must hold, not {} and {}", read.t_min, read.t_max)));
        }
        for (key, value) in
            [("sampler_config.entropy_bound", read.entropy_bound), ("confidence_threshold", read.confidence_threshold)]
        {
            if value <= 0.0 {
                return Err(wrong(key, format!("must be above 0, not {value}")));
            }
        }
        Ok(read)
    }
}

/// The key and what is wrong with it.
type Wrong = (String, String);

fn wrong(key: &str, why: String) -> Wrong {
    (key.to_owned(), why)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn number(map: &Map<String, Value>, field: &str, key: &str, fallback: f32) -> Result<f32, Wrong> {
    match map.get(field) {
        None | Some(Value::Null) => Ok(fallback),
        Some(value) => match value.as_f64().map(|value| value as f32) {
            Some(value) if value.is_finite() => Ok(value),
            Some(_) => Err(wrong(key, "the number is too large".to_owned())),
            None => Err(wrong(key, format!("a number was expected, not {}", kind(value)))),
        },
    }
}

fn count(map: &Map<String, Value>, key: &str, fallback: usize, least: u64) -> Result<usize, Wrong> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(fallback),
        Some(value) => {
            value.as_u64().filter(|value| (least..=MOST_STEPS).contains(value)).map(|value| value as usize).ok_or_else(
                || wrong(key, format!("a whole number from {least} to {MOST_STEPS} was expected, not {value}")),
            )
        }
    }
}

fn end_tokens(map: &Map<String, Value>, config: &Value, vocabulary: usize) -> Result<Vec<u32>, Wrong> {
    let text = config.get("text_config").and_then(|text| text.get("eos_token_id"));
    let given = [map.get("eos_token_id"), config.get("eos_token_id"), text];
    let Some(value) = given.into_iter().flatten().find(|value| !value.is_null()) else { return Ok(Vec::new()) };
    let list = match value {
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let mut ids = Vec::new();
    for value in list {
        let id = value.as_u64().filter(|&id| id < vocabulary as u64).and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| {
            wrong("eos_token_id", format!("token ids below {vocabulary}, the vocabulary, were expected, not {value}"))
        })?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(file: Value) -> Result<GenerationDefaults, CheckpointError> {
        GenerationDefaults::from_json("generation_config.json", Some(&file), &json!({"eos_token_id": [1, 9]}), 100)
    }

    #[test]
    fn the_published_file() {
        let got = read(json!({
            "max_new_tokens": 256, "max_denoising_steps": 48, "t_min": 0.4, "t_max": 0.8, "stability_threshold": 1,
            "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
            "confidence_threshold": 0.005, "eos_token_id": [1, 50, 1], "pad_token_id": 0
        }));
        assert_eq!(got.unwrap(), GenerationDefaults { end_tokens: vec![1, 50], ..Default::default() });
    }

    #[test]
    fn what_is_missing_falls_back() {
        assert_eq!(read(json!({})).unwrap(), GenerationDefaults { end_tokens: vec![1, 9], ..Default::default() });
        let nested = json!({"text_config": {"eos_token_id": 3}});
        assert_eq!(GenerationDefaults::from_json("generation_config.json", None, &nested, 4).unwrap().end_tokens, [3]);
        assert!(
            GenerationDefaults::from_json("generation_config.json", None, &json!(7), 4).unwrap().end_tokens.is_empty()
        );
    }

    #[test]
    fn wrong_values_are_named() {
        for (file, key) in [
            (json!([]), "(file)"),
            (json!({"max_denoising_steps": 0}), "max_denoising_steps"),
            (json!({"max_denoising_steps": 1e300}), "max_denoising_steps"),
            (json!({"max_denoising_steps": -1}), "max_denoising_steps"),
            (json!({"t_min": 0.8}), "t_min"),
            (json!({"t_min": -0.1}), "t_min"),
            (json!({"t_max": "hot"}), "t_max"),
            (json!({"t_max": 1e300}), "t_max"),
            (json!({"confidence_threshold": 0}), "confidence_threshold"),
            (json!({"sampler_config": {"entropy_bound": -1}}), "sampler_config.entropy_bound"),
            (json!({"sampler_config": {"_cls_name": "Other"}}), "sampler_config._cls_name"),
            (json!({"sampler_config": 3}), "sampler_config"),
            (json!({"eos_token_id": 100}), "eos_token_id"),
            (json!({"eos_token_id": [1, "a"]}), "eos_token_id"),
        ] {
            let error = read(file.clone()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("generation_config.json: {key}: ")), "{file}: {error}");
        }
    }
}
