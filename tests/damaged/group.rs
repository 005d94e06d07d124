//! The program inside a control group of the real system, where this process may make one (as root, or in a container that may).

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const LIMIT: u64 = 200 << 20;

/// A group with a memory limit, taken away in the end.
struct Group(PathBuf);

impl Group {
    /// Either version's; `None` where none can be made.
    fn new() -> Option<Group> {
        let name = format!("canvasd-test-{}", std::process::id());
        for (root, file) in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")] {
            let folder = Path::new(root).join(&name);
            // In a folder that is no control group this makes a plain folder, in which no limit appears.
            if std::fs::create_dir(&folder).is_err() {
                continue;
            }
            let group = Group(folder);
            let limit = group.0.join(file);
            if limit.exists() && std::fs::write(limit, LIMIT.to_string()).is_ok() {
                return Some(group);
            }
        }
        None
    }

    /// Runs the program in it.
    fn canvasd(&self, arguments: &[&str]) -> Output {
        let enter = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", enter]).arg(&self.0).arg(env!("CARGO_BIN_EXE_canvasd")).args(arguments);
        command.env_remove("CANVASD_MODEL").output().expect("a shell")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn the_limit_of_a_real_group_is_seen() {
    let Some(group) = Group::new() else {
        println!("skipped: no control group can be made here (made-up ones are tested all the same)");
        return;
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let output = group.canvasd(&["inspect"]);
    let described = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let available = described.split("available here: ").nth(1).and_then(|rest| rest.split(' ').next());
    let available: f64 = available.and_then(|number| number.parse().ok()).expect("an amount");
    assert!(described.contains(" MiB, ") && (100.0..=200.0).contains(&available), "{described}");
    assert!(described.contains("it can be served here"), "{described}");
    // What does not fit is refused before it is tried: an exit code of the program's own, not a kill.
    let output = group.canvasd(&["serve", "--port", "0", "--kv-memory", "300MiB"]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{error}");
    assert!(error.contains("300.0 MiB for keys and values") && error.contains("allow at most"), "{error}");
}
