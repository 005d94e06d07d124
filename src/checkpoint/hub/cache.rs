//! The cache on disk: `models--owner--name/{blobs, refs, snapshots}`.
//!
//! A blob is named by its etag (and by its file, where the etag is no sum of the bytes), a snapshot is a folder named by its commit whose files point at blobs, and a ref holds the
//! commit that a branch or tag stood for when it was last asked for. What is ours alone lies beside them under names that
//! begin with `.canvasd`.

use std::path::{Component, Path, PathBuf};

/// One repository's folder.
#[derive(Debug, Clone)]
pub(crate) struct Repo {
    folder: PathBuf,
}

impl Repo {
    pub(crate) fn of(cache: &Path, repo: &str) -> Self {
        Self { folder: cache.join(format!("models--{}", repo.replace('/', "--"))) }
    }

    /// The folder of one commit's files.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The commit a revision stands for, as far as the cache knows.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) && self.snapshot(revision).is_dir() {
            return Some(revision.to_owned());
        }
        let text = std::fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// The files that the repository's plain name stands for at a commit, as a fetch has found them in its whole listing.
    pub(crate) fn meaning(&self, commit: &str) -> Option<Vec<String>> {
        let text = std::fs::read_to_string(self.meanings().join(commit)).ok()?;
        let files: Vec<String> = text.lines().map(str::to_owned).collect();
        (!files.is_empty() && files.iter().all(|file| stays_inside(file))).then_some(files)
    }

    fn meanings(&self) -> PathBuf {
        self.folder.join(".canvasd.files")
    }
}

#[cfg(feature = "hub")]
impl Repo {
    /// The file that holds a blob's bytes.
    pub(crate) fn blob(&self, name: &str) -> PathBuf {
        self.folder.join("blobs").join(name)
    }

    /// The file whose lock says that somebody downloads into this folder.
    pub(crate) fn lock(&self) -> PathBuf {
        self.folder.join(".canvasd.lock")
    }

    /// Makes the folders.
    pub(crate) fn create(&self) -> std::io::Result<()> {
        std::fs::create_dir_all(self.folder.join("blobs"))
    }

    /// Remembers which commit a revision stands for.
    pub(crate) fn remember(&self, revision: &str, commit: &str) -> std::io::Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        std::fs::create_dir_all(path.parent().unwrap_or(&self.folder))?;
        std::fs::write(path, commit)
    }

    /// Writes down the files that the repository's plain name stands for at a commit.
    pub(crate) fn note_meaning(&self, commit: &str, files: &[String]) -> std::io::Result<()> {
        std::fs::create_dir_all(self.meanings())?;
        std::fs::write(self.meanings().join(commit), files.join("\n"))
    }

    /// Puts a blob into a snapshot under its file name: a link, or a copy where links are not to be had.
    pub(crate) fn link(&self, commit: &str, file: &str, blob: &str, size: u64) -> std::io::Result<()> {
        let at = self.snapshot(commit).join(file);
        std::fs::create_dir_all(at.parent().unwrap_or(&self.folder))?;
        if has_length(&at, size) {
            return Ok(());
        }
        // A link that points nowhere, or to something else, would be in the way.
        let _ = std::fs::remove_file(&at);
        #[cfg(unix)]
        {
            let up = "../".repeat(2 + file.matches('/').count());
            std::os::unix::fs::symlink(format!("{up}blobs/{blob}"), &at)
        }
        #[cfg(not(unix))]
        std::fs::copy(self.blob(blob), &at).map(|_| ())
    }
}

/// Whether there is a file of this length.
#[cfg(feature = "hub")]
pub(crate) fn has_length(path: &Path, length: u64) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.len() == length)
}

/// Whether a text is a commit's number, and thereby safe as a folder's name.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a file's name in a repository leads to a place inside the folder that it is joined to, on any system.
pub(crate) fn stays_inside(file: &str) -> bool {
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    let below = |part| matches!(part, Component::Normal(_));
    file.split('/').all(plain) && !file.contains('\\') && Path::new(file).components().all(below)
}

/// The files of a snapshot by their names in the repository, one folder deep (where GGUF files of one type may lie).
pub(crate) fn files(snapshot: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(snapshot).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if entry.path().is_dir() {
            for inner in std::fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                names.extend(inner.file_name().into_string().ok().map(|inner| format!("{name}/{inner}")));
            }
        } else {
            names.push(name);
        }
    }
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_known() {
        for inside in ["config.json", "BF16/m-00001.gguf", "..hidden", "a...b/c"] {
            assert!(stays_inside(inside), "{inside}");
        }
        for outside in ["", "/etc/passwd", "..", "../x", "a/../../x", "a//b", "./x", "a/.", "a/", "..\\x"] {
            assert!(!stays_inside(outside), "{outside}");
        }
    }

    #[test]
    fn a_meaning_is_read_back_and_a_spoilt_one_is_none() {
        let cache = tempfile::tempdir().unwrap();
        let repo = Repo::of(cache.path(), "own/er");
        let commit = "0".repeat(40);
        assert_eq!(repo.meaning(&commit), None);
        std::fs::create_dir_all(repo.meanings()).unwrap();
        for (text, files) in [("config.json\nBF16/m.gguf", Some(2)), ("", None), ("a\n../b", None)] {
            std::fs::write(repo.meanings().join(&commit), text).unwrap();
            assert_eq!(repo.meaning(&commit).map(|files| files.len()), files, "{text:?}");
        }
    }
}
