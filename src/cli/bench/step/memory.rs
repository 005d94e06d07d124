//! What the process holds in memory, as the system tells it.

use serde_json::{Value, json};

/// Bytes by kind; `None` where the system does not say (anything but Linux).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// The most that was ever resident.
    pub peak: u64,
    /// Anonymous memory resident now.
    pub anonymous: u64,
    /// Shared memory resident now.
    pub shared: u64,
    /// Pages of files resident now, which the system takes back when it wants to.
    pub files: u64,
}

impl Memory {
    /// Reads it.
    pub fn now() -> Option<Memory> {
        Memory::read(&std::fs::read_to_string("/proc/self/status").ok()?)
    }

    fn read(status: &str) -> Option<Memory> {
        let bytes = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        Some(Memory {
            peak: bytes("VmHWM:")?,
            anonymous: bytes("RssAnon:")?,
            shared: bytes("RssShmem:")?,
            files: bytes("RssFile:")?,
        })
    }

    /// For programs.
    pub fn json(self) -> Value {
        json!({
            "peak_bytes": self.peak,
            "anonymous_bytes": self.anonymous,
            "shared_bytes": self.shared,
            "file_bytes": self.files,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_words_are_read() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nRssAnon:\t 3 kB\nRssFile:\t 1 kB\nRssShmem:\t 0 kB\n";
        let memory = Memory { peak: 2 << 20, anonymous: 3072, shared: 0, files: 1024 };
        assert_eq!(Memory::read(status), Some(memory));
        assert_eq!(Memory::read("Name: x"), None);
        if cfg!(target_os = "linux") {
            assert!(Memory::now().unwrap().anonymous > 0);
        }
    }
}
