//! How much memory this process may still take: the machine's, or its container's where that is less.

use std::path::Path;

/// Bytes that can still be taken, or `None` where the system does not say (anything but Linux).
pub fn available() -> Option<u64> {
    let machine = machine(&read("/proc/meminfo")?)?;
    let group = [
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ]
    .into_iter()
    .find_map(|(limit, used)| group(&read(limit)?, &read(used)?));
    Some(group.map_or(machine, |group| group.min(machine)))
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn machine(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// What a control group has left; `None` where it sets no limit (`max`).
fn group(limit: &str, used: &str) -> Option<u64> {
    let limit: u64 = limit.trim().parse().ok()?;
    let used: u64 = used.trim().parse().ok()?;
    Some(limit.saturating_sub(used))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_and_the_containers_words_are_read() {
        assert_eq!(machine("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(machine("MemTotal: 9 kB\n"), None);
        assert_eq!(machine("MemAvailable: many\n"), None);
        assert_eq!(group("1000\n", "400\n"), Some(600));
        assert_eq!(group("1000\n", "1400\n"), Some(0));
        assert_eq!(group("max\n", "400\n"), None);
    }
}
