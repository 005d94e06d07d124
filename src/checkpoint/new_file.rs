//! A file on its way: written under a name of its own, and given its name when it is whole.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::error::CheckpointError;

/// A new file that is being written beside the place where it is to be. What is not finished is removed.
#[derive(Debug)]
pub struct NewFile {
    /// Its name when it is whole.
    path: PathBuf,
    /// Its name until then, which holds the process's number: nobody else's file is meant by it.
    partial: PathBuf,
    file: File,
}

impl NewFile {
    /// Makes an empty file beside `path`: whether something is there already, and whether the folder can be written to, is
    /// known before any work is done.
    ///
    /// # Errors
    /// [`CheckpointError::Write`] where something has the name already, or nothing can be written there.
    pub fn begin(path: &Path) -> Result<Self, CheckpointError> {
        let refused = |source| CheckpointError::Write { path: path.to_owned(), source };
        if path.try_exists().map_err(refused)? {
            return Err(refused(taken()));
        }
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
            let why = format!("there is no folder {}; make it first", folder.display());
            return Err(refused(io::Error::new(ErrorKind::NotFound, why)));
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(format!(".{}.part", std::process::id()));
        let partial = PathBuf::from(partial);
        let file = File::create_new(&partial).map_err(|error| CheckpointError::Write {
            path: partial.clone(),
            source: match error.kind() {
                ErrorKind::AlreadyExists => {
                    io::Error::new(error.kind(), "it is what a run that was killed has left; remove it")
                }
                _ => error,
            },
        })?;
        Ok(Self { path: path.to_owned(), partial, file })
    }

    /// The name that it is to have.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What is written to.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its name, once all of it is on the disk. What has taken that name meanwhile is left alone.
    pub(crate) fn finish(&self) -> io::Result<()> {
        self.file.sync_all()?;
        match fs::hard_link(&self.partial, &self.path) {
            Ok(()) => {
                // The file is there under its name; a second name that stays is not worth an error.
                self.discard();
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(taken()),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(error),
            // A file system without such links.
            Err(_) => self.reserve_and_rename(),
        }
    }

    /// Takes the name with an empty file, which only succeeds where nothing has it, and then replaces that.
    fn reserve_and_rename(&self) -> io::Result<()> {
        File::create_new(&self.path)
            .map_err(|error| if error.kind() == ErrorKind::AlreadyExists { taken() } else { error })?;
        fs::rename(&self.partial, &self.path).inspect_err(|_| {
            let _ = fs::remove_file(&self.path);
        })
    }

    /// Removes what is there of it, unless it is whole. Also for a program that ends while another thread still writes.
    pub fn discard(&self) {
        // A half file is of no use; that it cannot be removed either is not worth hiding what came before.
        let _ = fs::remove_file(&self.partial);
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        self.discard();
    }
}

fn taken() -> io::Error {
    io::Error::new(ErrorKind::AlreadyExists, "the file exists already; remove it, or choose another name")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_has_its_name_when_it_is_whole() {
        for finish in [NewFile::finish, NewFile::reserve_and_rename] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("m.gguf");
            // Another program's, or another run's.
            fs::write(folder.path().join("m.gguf.part"), "theirs").unwrap();
            let new = NewFile::begin(&path).unwrap();
            new.file().write_all(b"ours").unwrap();
            assert!(!path.exists());
            finish(&new).unwrap();
            drop(new);
            assert_eq!(fs::read(&path).unwrap(), b"ours");
            assert_eq!(fs::read(folder.path().join("m.gguf.part")).unwrap(), b"theirs");
            assert_eq!(names(folder.path()), ["m.gguf", "m.gguf.part"]);
        }
    }

    #[test]
    fn what_has_taken_the_name_meanwhile_stays() {
        for finish in [NewFile::finish, NewFile::reserve_and_rename] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("m.gguf");
            let new = NewFile::begin(&path).unwrap();
            fs::write(&path, "theirs").unwrap();
            let error = finish(&new).unwrap_err().to_string();
            assert!(error.contains("exists already"), "{error}");
            drop(new);
            assert_eq!(fs::read(&path).unwrap(), b"theirs");
            assert_eq!(names(folder.path()), ["m.gguf"]);
        }
    }

    #[test]
    fn what_is_discarded_gets_no_name() {
        for finish in [NewFile::finish, NewFile::reserve_and_rename] {
            let folder = tempfile::tempdir().unwrap();
            let new = NewFile::begin(&folder.path().join("m.gguf")).unwrap();
            let twice = NewFile::begin(&folder.path().join("m.gguf")).unwrap_err().to_string();
            assert!(twice.contains(".part") && twice.contains("remove it"), "{twice}");
            new.discard();
            finish(&new).unwrap_err();
            assert_eq!(names(folder.path()), [""; 0]);
        }
    }

    #[test]
    fn no_folder_is_no_place() {
        let error = NewFile::begin(Path::new("/nowhere/x.gguf")).unwrap_err().to_string();
        assert!(error.starts_with("cannot write /nowhere/x.gguf") && error.contains("make it first"), "{error}");
    }
}
