//! The environment's side of the configuration: which variable stands for which key, and which stand for nothing.

use std::ffi::{OsStr, OsString};

use super::{ConfigError, KEYS};

/// What precedes a key's name in the environment.
const PREFIX: &str = "CANVASD_";

/// Names the configuration file.
pub const FILE_VARIABLE: &str = "CANVASD_CONFIG";

/// Holds API keys, separated by commas.
pub const SECRETS_VARIABLE: &str = "CANVASD_API_KEY";

/// A key's variable and its value, if `look_up` finds one. A variable that is set but empty counts as not set, as
/// container tools cannot unset one.
pub(super) fn value(
    key: &str,
    look_up: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<(String, String)>, ConfigError> {
    let variable = format!("{PREFIX}{}", key.to_uppercase());
    let value = look_up(&variable).filter(|value| !value.is_empty());
    let value = value.map(|value| utf8(&variable, value)).transpose()?;
    Ok(value.map(|value| (variable, value)))
}

/// A variable's value as text. What cannot be read is refused: left out, the setting would silently be another one.
pub fn utf8(variable: &str, value: OsString) -> Result<String, ConfigError> {
    value.into_string().map_err(|_| ConfigError::Value {
        origin: variable.into(),
        why: "the value is not UTF-8; set it anew, or unset it".into(),
    })
}

/// The variables of this program's prefix that mean nothing to it, in order: a slip of the pen in a key's name, most likely.
pub fn unknown_variables(all: impl IntoIterator<Item = (OsString, OsString)>) -> Vec<String> {
    let ours = all.into_iter().filter(|(_, value)| !value.is_empty());
    let ours = ours.map(|(name, value)| (name.to_string_lossy().into_owned(), value));
    let unknown = ours.filter(|(name, value)| name.starts_with(PREFIX) && !is_known(name) && !is_link(name, value));
    let mut names: Vec<String> = unknown.map(|(name, _)| name).collect();
    names.sort_unstable();
    names
}

fn is_known(name: &str) -> bool {
    let key = name.strip_prefix(PREFIX).unwrap_or(name);
    name == FILE_VARIABLE || name == SECRETS_VARIABLE || KEYS.iter().any(|known| known.to_uppercase() == key)
}

/// Whether it is one of those that Kubernetes sets in every container for a service named `canvasd`, or `canvasd-…`:
/// `CANVASD_SERVICE_HOST`, `CANVASD_SERVICE_PORT_HTTP`, `CANVASD_PORT_8000_TCP_ADDR`, `CANVASD_WEB_PORT=tcp://…`.
fn is_link(name: &str, value: &OsStr) -> bool {
    let words: Vec<&str> = name.split('_').collect();
    let service = words.windows(2).any(|pair| pair == ["SERVICE", "PORT"]) || words.ends_with(&["SERVICE", "HOST"]);
    let port = words
        .windows(3)
        .any(|part| part[0] == "PORT" && part[1].parse::<u16>().is_ok() && ["TCP", "UDP", "SCTP"].contains(&part[2]));
    service || port || (words.ends_with(&["PORT"]) && value.to_string_lossy().contains("://"))
}
