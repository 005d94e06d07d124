//! What can be set about the HTTP side: plain data, made once by `cli`.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use subtle::{Choice, ConstantTimeEq};

/// Settings of the API; [`Default`] is right for one user on one machine.
#[derive(Debug, Clone)]
pub struct ApiSettings {
    /// Keys of which a request must carry one; none means that everybody may ask.
    pub keys: Keys,
    /// Origins whose browser pages may call the server; `"*"` is any, none is no other origin at all.
    pub cors_origins: Vec<String>,
    /// Largest request body in bytes.
    pub body_limit: usize,
    /// Longest time a request body may take to arrive.
    pub body_timeout: Duration,
    /// Longest time from a request to the end of its answer; a request may ask for less.
    pub request_timeout: Duration,
    /// `max_tokens` of a chat request that names none; `None` is whatever the context still holds.
    pub default_max_tokens: Option<usize>,
    /// Most choices of one request, all its prompts together.
    pub max_choices: usize,
    /// Silence after which a stream sends a comment, so that nobody on the way closes it.
    pub keep_alive: Duration,
}

impl Default for ApiSettings {
    fn default() -> Self {
        ApiSettings {
            keys: Keys::default(),
            cors_origins: Vec::new(),
            body_limit: 8 << 20,
            body_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(600),
            default_max_tokens: None,
            max_choices: 128,
            keep_alive: Duration::from_secs(10),
        }
    }
}

/// The keys that let a request in. Never printed.
#[derive(Clone, Default)]
pub struct Keys(Vec<String>);

impl Keys {
    /// Takes the keys; blank ones are dropped, white space around a key is not part of it.
    pub fn new<I: IntoIterator<Item = S>, S: AsRef<str>>(keys: I) -> Keys {
        let keys = keys.into_iter().map(|key| key.as_ref().trim().to_owned());
        Keys(keys.filter(|key| !key.is_empty()).collect())
    }

    /// Whether everybody may ask.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `given` is one of the keys. Takes the same time wherever the first difference is, and looks at all keys.
    pub(crate) fn admit(&self, given: &[u8]) -> bool {
        let found = self.0.iter().fold(Choice::from(0), |found, key| found | key.as_bytes().ct_eq(given));
        self.is_empty() || found.into()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

/// Listening where others can reach the server, without a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{address} can be reached from other machines and no API key is set: set CANVASD_API_KEY (or api_key_file), listen \
     on 127.0.0.1, or allow it with allow_unauthenticated"
)]
pub struct OpenDoor {
    /// The address asked for.
    pub address: IpAddr,
}

/// Refuses to serve everybody on an address that is not loopback.
pub fn check_door(address: IpAddr, keys: &Keys, allow_unauthenticated: bool) -> Result<(), OpenDoor> {
    let loopback = address.to_canonical().is_loopback();
    if loopback || allow_unauthenticated || !keys.is_empty() { Ok(()) } else { Err(OpenDoor { address }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_opens_and_anything_else_does_not() {
        let keys = Keys::new([" first ", "", "second"]);
        assert!(keys.admit(b"first") && keys.admit(b"second"));
        for wrong in [&b""[..], b"firs", b"firstt", b"FIRST", b" first "] {
            assert!(!keys.admit(wrong));
        }
        assert!(Keys::default().admit(b""));
        assert_eq!(format!("{keys:?}"), "2 keys");
    }

    #[test]
    fn other_machines_need_a_key() {
        let open = Keys::default();
        for here in ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(check_door(here.parse().unwrap(), &open, false), Ok(()));
        }
        for elsewhere in ["0.0.0.0", "::", "192.168.1.4", "2001:db8::1"] {
            let address = elsewhere.parse().unwrap();
            assert_eq!(check_door(address, &open, false), Err(OpenDoor { address }));
            assert_eq!(check_door(address, &open, true), Ok(()));
            assert_eq!(check_door(address, &Keys::new(["k"]), false), Ok(()));
        }
    }
}
