//! One JSON object of `config.json` with the path it stands at, so that every error names its key.

use serde_json::{Map, Value};

/// Why a `config.json` cannot be served.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A key is needed and not there.
    #[error("config.json: {key} is missing; this checkpoint's configuration is incomplete")]
    Missing {
        /// Path of the key, such as `text_config.hidden_size`.
        key: String,
    },
    /// A value has the wrong type, is out of range or contradicts another.
    #[error("config.json: {key} is {found}, but {wanted}")]
    Invalid {
        /// Path of the key.
        key: String,
        /// The value found, shortened.
        found: String,
        /// What it must be.
        wanted: String,
    },
    /// The value is meaningful, but this server does not implement it.
    #[error("config.json: {key} = {found} is not supported: {why}")]
    Unsupported {
        /// Path of the key.
        key: String,
        /// The value found, shortened.
        found: String,
        /// What is supported instead.
        why: String,
    },
}

/// An object and its path.
pub(super) struct Section<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    pub fn root(json: &'a Value) -> Result<Section<'a>, ConfigError> {
        let map = json.as_object().ok_or_else(|| ConfigError::Invalid {
            key: "the file".into(),
            found: shortened(json),
            wanted: "it must be a JSON object".into(),
        })?;
        Ok(Section { path: String::new(), map })
    }

    /// The value as it stands, JSON's null included.
    pub fn present(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key)
    }

    /// The value; null counts as missing, as it does for the reference.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.map.keys().map(String::as_str)
    }

    /// The object under `key`, if there is one.
    pub fn section(&self, key: &str) -> Result<Option<Section<'a>>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Section { path: self.path(key), map })),
            Some(_) => Err(self.invalid(key, "it must be an object")),
        }
    }

    /// A whole number of at least 1.
    pub fn size(&self, key: &str, default: Option<usize>, most: usize) -> Result<usize, ConfigError> {
        match self.count(key, default, most)? {
            0 => Err(self.invalid(key, "it must be at least 1")),
            n => Ok(n),
        }
    }

    /// A whole number of at least 0.
    pub fn count(&self, key: &str, default: Option<usize>, most: usize) -> Result<usize, ConfigError> {
        let Some(value) = self.get(key) else { return default.ok_or_else(|| self.missing(key)) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if n <= most => Ok(n),
            _ => Err(self.invalid(key, &format!("it must be a whole number of at most {most}"))),
        }
    }

    /// A finite number in `least ..= most`.
    pub fn number(&self, key: &str, default: Option<f64>, least: f64, most: f64) -> Result<f64, ConfigError> {
        let Some(value) = self.get(key) else { return default.ok_or_else(|| self.missing(key)) };
        match value.as_f64() {
            Some(x) if (least..=most).contains(&x) => Ok(x),
            _ => Err(self.invalid(key, &format!("it must be a number from {least} to {most}"))),
        }
    }

    pub fn text(&self, key: &str, default: Option<&str>) -> Result<String, ConfigError> {
        match self.get(key) {
            None => default.map(str::to_owned).ok_or_else(|| self.missing(key)),
            Some(Value::String(s)) => Ok(s.clone()),
            Some(_) => Err(self.invalid(key, "it must be a string")),
        }
    }

    /// Missing, null or one of `allowed`.
    pub fn only(&self, key: &str, allowed: &[&str], why: &str) -> Result<(), ConfigError> {
        match self.get(key) {
            None => Ok(()),
            Some(Value::String(s)) if allowed.contains(&s.as_str()) => Ok(()),
            Some(_) => Err(self.unsupported(key, why)),
        }
    }

    /// Missing, null or exactly `wanted`.
    pub fn flag(&self, key: &str, wanted: bool, why: &str) -> Result<(), ConfigError> {
        match self.get(key) {
            None => Ok(()),
            Some(Value::Bool(b)) if *b == wanted => Ok(()),
            Some(_) => Err(self.unsupported(key, why)),
        }
    }

    /// Missing, null or 0.
    pub fn zero(&self, key: &str, why: &str) -> Result<(), ConfigError> {
        match self.get(key) {
            None => Ok(()),
            Some(v) if v.as_u64() == Some(0) => Ok(()),
            Some(_) => Err(self.unsupported(key, why)),
        }
    }

    /// Missing or null.
    pub fn absent(&self, key: &str, why: &str) -> Result<(), ConfigError> {
        if self.get(key).is_some() { Err(self.unsupported(key, why)) } else { Ok(()) }
    }

    pub fn missing(&self, key: &str) -> ConfigError {
        ConfigError::Missing { key: self.path(key) }
    }

    pub fn invalid(&self, key: &str, wanted: &str) -> ConfigError {
        ConfigError::Invalid { key: self.path(key), found: self.found(key), wanted: wanted.into() }
    }

    pub fn unsupported(&self, key: &str, why: &str) -> ConfigError {
        ConfigError::Unsupported { key: self.path(key), found: self.found(key), why: why.into() }
    }

    fn found(&self, key: &str) -> String {
        self.map.get(key).map_or_else(|| "missing".into(), shortened)
    }

    fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// The value as JSON, cut to a readable length.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((cut, _)) => format!("{}…", text.get(..cut).unwrap_or_default()),
        None => text,
    }
}
