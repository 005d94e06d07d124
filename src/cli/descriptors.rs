//! How many files the process may have open: every connection is one.

/// What the process may need beside its connections: the model's files, downloads, the log, what the runtime waits with.
const BESIDE: usize = 64;

/// How many of the `wanted` connections there can be. Raises the process's limit on open files as far as that takes and the
/// system allows; where it does not allow enough, the log says so.
pub fn connections(wanted: usize) -> usize {
    let needed = wanted.saturating_add(BESIDE);
    let room = limit(needed).map_or(wanted, |limit| room(wanted, limit));
    if room < wanted {
        tracing::warn!(
            "max_connections = {wanted} needs {needed} open files, and the system allows this process fewer: {room} \
             connections at once; raise the hard limit (ulimit -Hn, LimitNOFILE=, docker run --ulimit nofile=)"
        );
    }
    room
}

/// Connections that fit under a limit on open files. Under a low one the half of it: the process needs some itself.
fn room(wanted: usize, limit: usize) -> usize {
    limit.saturating_sub(BESIDE).max(limit / 2).clamp(1, wanted.max(1))
}

/// The limit on open files once it has been raised towards `needed`; `None` where there is none.
#[cfg(unix)]
fn limit(needed: usize) -> Option<usize> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let count = |limit: u64| usize::try_from(limit).unwrap_or(usize::MAX);
    let current = count(current?);
    if current >= needed {
        return Some(current);
    }
    let raised = maximum.map_or(needed, |most| count(most).min(needed));
    let wish = Rlimit { current: Some(raised as u64), maximum };
    // Not worth an error: with fewer connections it serves as well.
    Some(setrlimit(Resource::Nofile, wish).map_or(current, |()| raised))
}

#[cfg(not(unix))]
fn limit(_: usize) -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_other_files() {
        assert_eq!(room(1024, 1024 + BESIDE), 1024);
        assert_eq!(room(1024, 1 << 20), 1024);
        assert_eq!(room(1024, 1024), 1024 - BESIDE);
        assert_eq!(room(1024, 24), 12);
        assert_eq!(room(4, 24), 4);
        assert_eq!(room(4, 1), 1);
    }
}
