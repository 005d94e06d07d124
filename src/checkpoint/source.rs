//! What the user may write after `--model`.

use std::path::{Path, PathBuf};

use super::error::CheckpointError;

/// Where a checkpoint comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The small model that is part of this program.
    Demo,
    /// A local folder in Hugging Face layout.
    Folder(PathBuf),
    /// A local GGUF file.
    Gguf(PathBuf),
    /// A repository on the hub, taken from the local cache or downloaded.
    Hub(HubName),
}

/// A hub repository as the user names it: `owner/name[@revision][:file.gguf | :quantization]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    /// `owner/name`.
    pub repo: String,
    /// Branch, tag or commit; `main` if not given.
    pub revision: String,
    /// A file of the repository, or the part of its name that tells the quantization (`Q4_K_M`).
    pub file: Option<String>,
}

impl std::fmt::Display for HubName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.repo)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        self.file.as_ref().map_or(Ok(()), |file| write!(f, ":{file}"))
    }
}

impl Source {
    /// Reads what stands after `--model`; nothing means the demo. A path that exists wins over a hub name.
    ///
    /// # Errors
    /// [`CheckpointError::Name`] where the text is neither an existing path nor a hub name.
    pub fn parse(name: Option<&str>) -> Result<Self, CheckpointError> {
        let Some(name) = name else { return Ok(Self::Demo) };
        let refused = |why: &str| CheckpointError::Name { name: super::error::shown(name), why: why.to_owned() };
        if name.trim().is_empty() {
            return Err(refused("the name is empty; leave --model out for the shipped demo"));
        }
        let path = Path::new(name);
        if path.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        if path.is_file() {
            return match path.extension().and_then(|ext| ext.to_str()) {
                Some(ext) if ext.eq_ignore_ascii_case("gguf") => Ok(Self::Gguf(path.to_owned())),
                Some("safetensors" | "json") => Err(refused("name the folder that holds this file, not the file")),
                _ => Err(refused("a model file must be a .gguf; a safetensors checkpoint is named by its folder")),
            };
        }
        if name == "demo" {
            return Ok(Self::Demo);
        }
        if name.contains(',') || name.split_whitespace().count() > 1 {
            return Err(refused("one server serves one model; start a second server for a second model"));
        }
        if looks_like_path(name) {
            return Err(refused("there is no such file or folder"));
        }
        HubName::parse(name).map(Self::Hub).ok_or_else(|| {
            refused("neither an existing folder or .gguf file nor a hub name (owner/name, owner/name@revision, owner/name:Q4_K_M)")
        })
    }
}

/// Whether a name that does not exist was surely meant as a path.
fn looks_like_path(name: &str) -> bool {
    name.starts_with(['/', '.', '~', '\\'])
        || name.ends_with('/')
        || name.contains('\\')
        || (name.ends_with(".gguf") && !name.contains(':'))
        || name.split(['@', ':']).next().is_some_and(|repo| repo.matches('/').count() > 1)
}

impl HubName {
    /// `None` where the text cannot be a hub name.
    fn parse(name: &str) -> Option<Self> {
        let (rest, file) = match name.split_once(':') {
            Some((rest, file)) => (rest, Some(file)),
            None => (name, None),
        };
        let (repo, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let (owner, model) = repo.split_once('/')?;
        let word = |text: &str| {
            !text.is_empty()
                && text.len() <= 96
                && !text.starts_with(['.', '-'])
                && !text.contains("..")
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        // Revisions (`refs/pr/1`) and files (`BF16/model.gguf`) may hold slashes; each part must be a plain word, so that
        // none can climb out of the cache's folder.
        let words = |text: &str| text.split('/').all(word);
        let sound = word(owner) && word(model) && words(revision) && file.is_none_or(words);
        sound.then(|| Self { repo: repo.to_owned(), revision: revision.to_owned(), file: file.map(str::to_owned) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(name: &str) -> HubName {
        match Source::parse(Some(name)) {
            Ok(Source::Hub(hub)) => hub,
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn names_of_every_kind() {
        assert_eq!(Source::parse(None).unwrap(), Source::Demo);
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        assert_eq!(Source::parse(at.to_str()).unwrap(), Source::Folder(at.to_owned()));
        let file = at.join("m.GGUF");
        std::fs::write(&file, b"x").unwrap();
        assert_eq!(Source::parse(file.to_str()).unwrap(), Source::Gguf(file));
        let plain = hub("google/diffusiongemma-26B-A4B-it");
        assert_eq!((plain.revision.as_str(), plain.file.as_deref()), ("main", None));
        let full = hub("u/r@refs/pr/1:BF16/x.gguf");
        assert_eq!(
            (full.repo.as_str(), full.revision.as_str(), full.file.as_deref()),
            ("u/r", "refs/pr/1", Some("BF16/x.gguf"))
        );
        assert_eq!(full.to_string(), "u/r@refs/pr/1:BF16/x.gguf");
        assert_eq!(hub("u/r:Q4_K_M").file.as_deref(), Some("Q4_K_M"));
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let weights = folder.path().join("model.safetensors");
        std::fs::write(&weights, b"x").unwrap();
        let weights = weights.to_str().unwrap();
        for (name, hint) in [
            ("", "empty"),
            ("a/b,c/d", "one server serves one model"),
            ("./nowhere", "no such file"),
            ("/nowhere/at/all", "no such file"),
            ("model.gguf", "no such file"),
            ("a/b/c", "no such file"),
            ("a/../b", "no such file"),
            ("word", "neither"),
            ("a/b:../../etc/passwd", "neither"),
            ("a/b@../x", "neither"),
            ("a/b@", "neither"),
            ("a/b:", "neither"),
            ("a/ü", "neither"),
            (weights, "name the folder"),
        ] {
            let error = Source::parse(Some(name)).unwrap_err().to_string();
            assert!(error.contains(hint), "{name}: {error}");
        }
    }
}
