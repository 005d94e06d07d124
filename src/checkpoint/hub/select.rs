//! Which files of a repository make the checkpoint that a name means.

use std::collections::BTreeSet;
use std::path::Path;

use super::super::folder::{INDEX, SINGLE};
use super::super::source::{HubName, Source};

/// Small files that a checkpoint may have.
const SMALL: [&str; 6] = [
    "config.json",
    "hf_quant_config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];

/// The files to have, small ones first.
#[derive(Debug, PartialEq)]
pub(crate) struct Chosen {
    /// Names in the repository: one GGUF file, or those of a safetensors checkpoint.
    pub(crate) files: Vec<String>,
}

/// Why no choice can be made.
#[derive(Debug, PartialEq)]
pub(crate) enum Choice {
    /// Nothing fits.
    Nothing(String),
    /// More than one file fits.
    Several(String),
}

/// Chooses among a repository's files.
pub(crate) fn choose(name: &HubName, files: &[String]) -> Result<Chosen, Choice> {
    let has = |file: &str| files.iter().any(|name| name == file);
    let gguf: Vec<&String> = files.iter().filter(|file| is_gguf(file)).collect();
    let gguf = match &name.file {
        Some(wanted) => Some(named(wanted, &gguf)?),
        None if has("config.json") && (has(SINGLE) || has(INDEX)) => None,
        None => match gguf.as_slice() {
            [] => {
                let why = "it holds neither a safetensors checkpoint (config.json, model.safetensors) nor a .gguf file";
                return Err(Choice::Nothing(why.to_owned()));
            }
            [one] => Some((*one).clone()),
            several => {
                let why = format!("it holds several .gguf files; add one of them to the name: {}", endings(several));
                return Err(Choice::Several(why));
            }
        },
    };
    if let Some(file) = gguf {
        return Ok(Chosen { files: vec![file] });
    }
    let mut chosen: Vec<String> = SMALL.iter().filter(|file| has(file)).map(|file| (*file).to_owned()).collect();
    // What shards there are, the index alone can say: see [`Chosen::add_shards`].
    chosen.push(if has(INDEX) { INDEX } else { SINGLE }.to_owned());
    Ok(Chosen { files: chosen })
}

/// Whether a chosen file holds tensors; the others say what they are.
#[cfg(feature = "hub")]
pub(crate) fn is_weights(file: &str) -> bool {
    is_gguf(file) || file.ends_with(".safetensors")
}

fn is_gguf(file: &str) -> bool {
    file.to_ascii_lowercase().ends_with(".gguf")
}

/// The files that an index names, each once; `None` where it cannot be read.
fn shards(index: &[u8]) -> Option<BTreeSet<String>> {
    let index: serde_json::Value = serde_json::from_slice(index).ok()?;
    let map = index.get("weight_map")?.as_object()?;
    Some(map.values().filter_map(|shard| shard.as_str()).map(str::to_owned).collect())
}

/// The one file of this name, or of this quantization.
fn named(wanted: &str, gguf: &[&String]) -> Result<String, Choice> {
    if let Some(exact) = gguf.iter().find(|file| file.as_str() == wanted) {
        return Ok((*exact).clone());
    }
    let fits = |file: &&&String| {
        let stem = file.to_ascii_lowercase();
        let stem = stem.trim_end_matches(".gguf");
        let wanted = wanted.to_ascii_lowercase();
        // `Q4_K` must not mean `Q4_K_M`, nor `Q8_0` a `UD-Q8_0`: the whole last part of the name has to agree.
        stem == wanted
            || stem.strip_suffix(&wanted).is_some_and(|rest| rest.ends_with(['-', '.', '/']) && !rest.ends_with("-ud-"))
    };
    let found: Vec<&&String> = gguf.iter().filter(fits).collect();
    match found.as_slice() {
        [one] => Ok((**one).clone()),
        [] if gguf.is_empty() => Err(Choice::Nothing("it holds no .gguf file".to_owned())),
        [] => Err(Choice::Nothing(format!("it holds no file for {wanted}; there are {}", endings(gguf)))),
        several => {
            let list: Vec<&str> = several.iter().map(|file| file.as_str()).collect();
            Err(Choice::Several(format!("{wanted} fits several files: {}", list.join(", "))))
        }
    }
}

/// A short list for an error message.
fn endings(files: &[&String]) -> String {
    const MOST: usize = 20;
    let mut list: Vec<String> = files.iter().take(MOST).map(|file| format!(":{file}")).collect();
    if files.len() > MOST {
        list.push("…".to_owned());
    }
    list.join(", ")
}

impl Chosen {
    /// Whether everything is there, shards of the index included.
    pub(crate) fn complete(&self, snapshot: &Path) -> bool {
        let there = |file: &str| snapshot.join(file).is_file();
        if !self.files.iter().all(|file| there(file)) {
            return false;
        }
        if !self.sharded() {
            return true;
        }
        // An index that cannot be read is for the opening to explain; downloading it again would not mend it.
        let index = std::fs::read(snapshot.join(INDEX)).unwrap_or_default();
        shards(&index).is_none_or(|shards| shards.iter().all(|shard| there(shard)))
    }

    /// Whether its weights are the files that an index names.
    pub(crate) fn sharded(&self) -> bool {
        self.files.iter().any(|file| file == INDEX)
    }

    /// Adds the files that the index names, out of those that the repository has. One that cannot be read names none: the
    /// opening explains it.
    #[cfg(feature = "hub")]
    pub(crate) fn add_shards(&mut self, index: &[u8], files: &[String]) -> Result<(), Choice> {
        for shard in shards(index).unwrap_or_default() {
            if !files.contains(&shard) {
                let shard = super::super::error::shown(&shard);
                return Err(Choice::Nothing(format!("{INDEX} names {shard}, which the repository does not have")));
            }
            self.files.push(shard);
        }
        Ok(())
    }

    /// Whether a checkpoint can be opened from what is there, where nobody can say what more the repository has.
    pub(crate) fn suffices(&self, snapshot: &Path) -> bool {
        let one_file = self.files.iter().any(|file| is_gguf(file));
        self.complete(snapshot) && (one_file || snapshot.join("tokenizer.json").is_file())
    }

    /// What to open.
    pub(crate) fn source(&self, snapshot: &Path) -> Source {
        match self.files.iter().find(|file| is_gguf(file)) {
            Some(file) => Source::Gguf(snapshot.join(file)),
            None => Source::Folder(snapshot.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(file: Option<&str>, files: &[&str]) -> Result<Vec<String>, Choice> {
        let name = HubName { repo: "a/b".to_owned(), revision: "main".to_owned(), file: file.map(str::to_owned) };
        let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
        choose(&name, &files).map(|chosen| chosen.files)
    }

    #[test]
    fn folders() {
        assert_eq!(
            pick(None, &["README.md", "config.json", "model.safetensors"]).unwrap(),
            ["config.json", "model.safetensors"]
        );
        let shards = ["config.json", "model.safetensors-1-of-2.safetensors", "b.safetensors", INDEX, "c.safetensors"];
        assert_eq!(pick(None, &shards).unwrap(), ["config.json", INDEX], "the shards are for the index to name");
        assert!(matches!(pick(None, &["README.md"]), Err(Choice::Nothing(_))));
    }

    #[test]
    #[cfg(feature = "hub")]
    fn shards_are_those_of_the_index() {
        let listed = ["b.safetensors", "model-1-of-2.safetensors", "unused.safetensors"].map(str::to_owned);
        let added = |index: &str| {
            let mut chosen = Chosen { files: vec![INDEX.to_owned()] };
            chosen.add_shards(index.as_bytes(), &listed).map(|()| chosen.files.split_off(1))
        };
        let both = r#"{"weight_map": {"x": "model-1-of-2.safetensors", "y": "b.safetensors", "z": "b.safetensors"}}"#;
        assert_eq!(added(both).unwrap(), ["b.safetensors", "model-1-of-2.safetensors"]);
        assert_eq!(added("{").unwrap(), [""; 0]);
        let Err(Choice::Nothing(why)) = added(r#"{"weight_map": {"x": "a.safetensors"}}"#) else { panic!() };
        assert!(why.contains("names a.safetensors, which the repository does not have"), "{why}");
    }

    #[test]
    fn gguf_files() {
        let files = ["m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-UD-Q4_K_XL.gguf", "BF16/m-BF16.gguf"];
        assert_eq!(pick(Some("Q4_K_M"), &files).unwrap(), ["m-Q4_K_M.gguf"]);
        assert_eq!(pick(Some("q8_0"), &files).unwrap(), ["m-Q8_0.gguf"]);
        assert_eq!(pick(Some("UD-Q4_K_XL"), &files).unwrap(), ["m-UD-Q4_K_XL.gguf"]);
        assert_eq!(pick(Some("bf16"), &files).unwrap(), ["BF16/m-BF16.gguf"]);
        assert_eq!(pick(Some("m-Q8_0.gguf"), &files).unwrap(), ["m-Q8_0.gguf"]);
        assert_eq!(pick(None, &files[..1]).unwrap(), ["m-Q4_K_M.gguf"]);
        for wanted in ["Q4_K", "K_M", "Q5_K_M", "Q4_K_XL"] {
            let Err(Choice::Nothing(why)) = pick(Some(wanted), &files) else { panic!("{wanted}") };
            assert!(why.contains(":m-Q8_0.gguf"), "{why}");
        }
        assert!(matches!(pick(None, &files), Err(Choice::Several(_))));
        assert!(matches!(pick(Some("Q8_0"), &["a-Q8_0.gguf", "b-Q8_0.gguf"]), Err(Choice::Several(_))));
    }
}
