//! The socket's file: bound before privileges are given up, inherited in an upgrade, taken along at the end.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::process::umask;

/// A bound socket; its file goes when this is dropped, where that is still allowed.
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// The file is another gateway's.
    is_left: bool,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(
        "control.socket {}: a running gateway answers there: stop it, or give this one another path",
        .0.display()
    )]
    Taken(PathBuf),
    #[error("control.socket {}: there is something else than a socket: move it away", .0.display())]
    Occupied(PathBuf),
    #[error("control.socket {}: {source}; its folder has to be there, and writable", .path.display())]
    Bind { path: PathBuf, source: io::Error },
}

impl Socket {
    /// Binds; a file that a dead gateway has left is replaced. While there is one thread only, since the
    /// file's mode comes from the process's mask.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        match fs::symlink_metadata(path) {
            Ok(file) if !file.file_type().is_socket() => return Err(BindError::Occupied(path.to_owned())),
            Ok(_) if UnixStream::connect(path).is_ok() => return Err(BindError::Taken(path.to_owned())),
            Ok(_) => drop(fs::remove_file(path)),
            Err(_) => {}
        }
        let before = umask(Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        umask(before);
        let failed = |source| BindError::Bind { path: path.to_owned(), source };
        let listener = bound.map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned(), is_left: false })
    }

    /// The socket of a gateway that this one is to follow; its file is that gateway's until then.
    pub fn inherited(listener: UnixListener, path: PathBuf) -> Self {
        Self { listener, path, is_left: true }
    }

    /// Its file is this gateway's from here on.
    pub fn own(&mut self) {
        self.is_left = false;
    }

    /// A second hold on it, which leaves its file alone.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }

    /// Closes it and leaves its file to a successor.
    pub fn leave(mut self) {
        self.is_left = true;
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.is_left {
            // A user without the right to may not; the next start replaces the file.
            let _ = fs::remove_file(&self.path);
        }
    }
}
