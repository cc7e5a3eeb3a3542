//! Secrets, which a configuration never holds: it names a file of each, which is read whenever the secret is needed.
//!
//! So a file that is replaced counts from then on, without a reload, and nothing that shows a configuration can show a
//! secret. `check` tells what cannot be read now; it is no fault, for the file may belong to another user or host.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::document::{Node, Object};
use super::value;

/// Far beyond any password or token: whatever is longer is another file.
const LONGEST_BYTES: u64 = 4096;

/// Why a file gives no secret. Tells nothing of what is in it.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("{}: {source}", .file.display())]
    Unreadable { file: PathBuf, source: io::Error },
    #[error("{}: {what}", .file.display())]
    Unfit { file: PathBuf, what: String },
}

/// What is in `file`, without the end of its line.
pub fn secret(file: &Path) -> Result<String, SecretError> {
    let unreadable = |source| SecretError::Unreadable { file: file.to_owned(), source };
    let unfit = |what: &str| Err(SecretError::Unfit { file: file.to_owned(), what: what.to_owned() });
    // A pipe would make whoever opens it wait.
    if !fs::metadata(file).map_err(unreadable)?.is_file() {
        return unfit("is no regular file");
    }
    let mut content = Vec::new();
    let opened = File::open(file).map_err(unreadable)?;
    opened.take(LONGEST_BYTES + 1).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() as u64 > LONGEST_BYTES {
        return unfit(&format!("is longer than {LONGEST_BYTES} bytes, which no secret is"));
    }
    let Ok(mut text) = String::from_utf8(content) else { return unfit("is not UTF-8 text") };
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    if text.is_empty() { unfit("is empty") } else { Ok(text) }
}

/// The file named at `key`.
pub(super) fn file(keys: &mut Object<'_>, key: &'static str, expected: &str) -> Option<PathBuf> {
    let file = keys.optional(key, |node: &Node<'_>| node.string(expected, value::file_path))?;
    if let Err(error) = secret(&file) {
        keys.warn(key, format!("{error}: the gateway has to read it, as the user that it becomes"));
    }
    Some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_gives() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        let most = LONGEST_BYTES as usize;
        for (content, want) in [
            (b"word".to_vec(), Some("word")),
            (b"word\n".to_vec(), Some("word")),
            (b"word\r\n".to_vec(), Some("word")),
            (b" two words ".to_vec(), Some(" two words ")),
            (b"".to_vec(), None),
            (b"\n".to_vec(), None),
            (b"\xff".to_vec(), None),
            (vec![b'x'; most + 1], None),
        ] {
            fs::write(&path, &content).expect("written");
            match (secret(&path), want) {
                (Ok(read), Some(want)) => assert_eq!(read, want),
                (Err(error), None) => {
                    let said = error.to_string();
                    assert!(
                        said.starts_with(path.to_str().expect("ASCII")) && !said.contains("xxx"),
                        "{said}"
                    );
                }
                (read, want) => panic!("{read:?} {want:?}"),
            }
        }
        fs::write(&path, vec![b'x'; most]).expect("written");
        assert_eq!(secret(&path).expect("just short enough").len(), most);
        for other in [folder.path(), Path::new("/dev/zero"), Path::new("/nowhere")] {
            assert!(secret(other).is_err(), "{}", other.display());
        }
    }
}
