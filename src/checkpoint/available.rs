//! How much memory this machine, or the container around this process, still has to give.

use std::path::{Path, PathBuf};

/// Bytes this process may still take: what the machine has free, or its control groups allow where that is less. `None` where
/// the system does not say (anything but Linux).
pub fn available() -> Option<u64> {
    System::of_this_process().available()
}

/// Where the system tells about memory.
struct System {
    /// As `/proc/meminfo`.
    meminfo: PathBuf,
    /// As `/proc/self/cgroup`.
    own: PathBuf,
    /// As `/sys/fs/cgroup`.
    groups: PathBuf,
}

/// What the two versions of control groups call the same things.
struct Words {
    /// Files that hold a limit; the lowest counts.
    limits: &'static [&'static str],
    used: &'static str,
    /// Lines of memory.stat with file pages that are given up when memory is short.
    cached: [&'static str; 2],
    /// The line of memory.stat with the lowest limit up to the root, groups that cannot be seen from here included.
    inherited: Option<&'static str>,
}

const FIRST: Words = Words {
    limits: &["memory.limit_in_bytes"],
    used: "memory.usage_in_bytes",
    cached: ["total_inactive_file", "total_active_file"],
    inherited: Some("hierarchical_memory_limit"),
};

const SECOND: Words = Words {
    // Above `high` a group is slowed down until it is of no use.
    limits: &["memory.max", "memory.high"],
    used: "memory.current",
    cached: ["inactive_file", "active_file"],
    inherited: None,
};

impl System {
    fn of_this_process() -> Self {
        Self { meminfo: "/proc/meminfo".into(), own: "/proc/self/cgroup".into(), groups: "/sys/fs/cgroup".into() }
    }

    fn available(&self) -> Option<u64> {
        let machine = machine(&read(&self.meminfo)?)?;
        Some(self.left().into_iter().chain([machine]).min().unwrap_or(machine))
    }

    /// What each control group from this process's own up to the root has left.
    fn left(&self) -> Vec<u64> {
        let own = read(&self.own).unwrap_or_default();
        let mut left = Vec::new();
        for line in own.lines() {
            let mut parts = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
            let (base, words) = match controllers {
                // Both versions at once: the second is then beside the first's controllers.
                "" if self.groups.join("unified").is_dir() => (self.groups.join("unified"), &SECOND),
                "" => (self.groups.clone(), &SECOND),
                list if list.split(',').any(|name| name == "memory") => (self.groups.join("memory"), &FIRST),
                _ => continue,
            };
            // Inside a container the path may be the host's; its own group is then the root that it sees.
            let mut folder = base.clone();
            left.extend(words.left(&folder));
            for part in Path::new(path).components().filter(|part| matches!(part, std::path::Component::Normal(_))) {
                folder.push(part);
                left.extend(words.left(&folder));
            }
        }
        left
    }
}

impl Words {
    /// What one group has left; `None` without a limit. Its file cache counts as free.
    fn left(&self, folder: &Path) -> Option<u64> {
        let number = |name: &str| read(folder.join(name))?.trim().parse::<u64>().ok();
        let stat = read(folder.join("memory.stat")).unwrap_or_default();
        let line = |name: &str| {
            stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<u64>().ok())
        };
        let own = self.limits.iter().filter_map(|name| number(name));
        let limit = own.chain(self.inherited.and_then(line)).min()?;
        let cached = self.cached.iter().filter_map(|name| line(name)).fold(0u64, u64::saturating_add);
        Some(limit.saturating_sub(number(self.used)?.saturating_sub(cached)))
    }
}

/// `MemAvailable` of /proc/meminfo.
fn machine(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_words_are_read() {
        assert_eq!(machine("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(machine("MemTotal: 9 kB\n"), None);
        assert_eq!(machine("MemAvailable: many\n"), None);
    }

    /// A made-up system with 9,000 kB free and these files.
    fn available(own: &str, files: &[(&str, &str)]) -> Option<u64> {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("meminfo"), "MemFree: 1 kB\nMemAvailable: 9000 kB\n").unwrap();
        std::fs::write(at("own"), own).unwrap();
        for (name, content) in files {
            let path = at("groups").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        System { meminfo: at("meminfo"), own: at("own"), groups: at("groups") }.available()
    }

    const MACHINE: u64 = 9000 << 10;

    #[test]
    fn groups_of_the_second_version() {
        let own = "0::/a/b\n";
        assert_eq!(available(own, &[]), Some(MACHINE));
        let unlimited = [("memory.max", "max\n"), ("memory.current", "5\n")];
        assert_eq!(available(own, &unlimited), Some(MACHINE));
        let one = [("a/b/memory.max", "1000\n"), ("a/b/memory.current", "400\n")];
        assert_eq!(available(own, &one), Some(600));
        let stat =
            ("a/b/memory.stat", "anon 90\nfile 300\nshmem 100\nfile_mapped 20\ninactive_file 150\nactive_file 50\n");
        assert_eq!(available(own, &[one[0], one[1], stat]), Some(800), "shared memory is no cache");
        // The group above has less to give.
        let above = [("a/memory.max", "700\n"), ("a/memory.current", "650\n"), one[0], one[1], stat];
        assert_eq!(available(own, &above), Some(50));
        let high = [one[0], one[1], ("a/b/memory.high", "500")];
        assert_eq!(available(own, &high), Some(100));
        let full = [("a/b/memory.max", "1000\n"), ("a/b/memory.current", "1400\n")];
        assert_eq!(available(own, &full), Some(0));
        // In a container the own group is the root of what is seen, whatever the path says.
        let inside = [("memory.max", "1000\n"), ("memory.current", "100\n")];
        assert_eq!(available("0::/\n", &inside), Some(900));
        assert_eq!(available("0::/../../host/path\n", &inside), Some(900));
        assert_eq!(available("nonsense\n0::\n", &inside), Some(900));
    }

    #[test]
    fn groups_of_the_first_version() {
        let own = "9:name=systemd:/x\n4:cpu,memory:/box/one\n1:cpu:/y\n0::/\n";
        let unlimited =
            [("memory/memory.limit_in_bytes", "9223372036854771712\n"), ("memory/memory.usage_in_bytes", "77\n")];
        assert_eq!(available(own, &unlimited), Some(MACHINE));
        let limited = [
            unlimited[0],
            unlimited[1],
            ("memory/box/one/memory.limit_in_bytes", "1000\n"),
            ("memory/box/one/memory.usage_in_bytes", "500\n"),
            (
                "memory/box/one/memory.stat",
                "cache 300\ninactive_file 1\ntotal_inactive_file 100\ntotal_active_file 20\n",
            ),
        ];
        assert_eq!(available(own, &limited), Some(620));
        // A container that sees its own group at the root, below a limit that it cannot see.
        let hidden = [unlimited[0], unlimited[1], ("memory/memory.stat", "hierarchical_memory_limit 4096\n")];
        assert_eq!(available("4:memory:/somewhere/else\n", &hidden), Some(4096 - 77));
        // Both versions at once: the second has no memory controller.
        let hybrid = [limited[0], limited[1], limited[2], limited[3], limited[4], ("unified/cgroup.procs", "1\n")];
        assert_eq!(available(own, &hybrid), Some(620));
    }
}
