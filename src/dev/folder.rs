//! The folder of all data: one process at a time, and a place that Postgres can reach when it runs as another user.

use std::{
    fs::{File, TryLockError},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

/// A folder that is ours until this is dropped; a throw-away one is removed then.
pub struct Folder {
    path: PathBuf,
    throw_away: bool,
    _lock: File,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not prepare the folder {}", path.display())]
    Prepare { path: PathBuf, source: std::io::Error },
    #[error("another `queue-service dev` uses {}; stop it, or choose another folder with --data", .0.display())]
    Taken(PathBuf),
}

impl Folder {
    /// Makes `wanted` ready. A folder below one that only root may enter is exchanged for one in /var/tmp.
    ///
    /// # Errors
    /// It can't be made, or somebody else uses it.
    pub fn keep(wanted: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Prepare { path: wanted.to_owned(), source };
        std::fs::create_dir_all(wanted).map_err(failed)?;
        let path = wanted.canonicalize().map_err(failed)?;
        if rustix::process::geteuid().is_root() && !everybody_may_enter(&path) {
            let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
            let name: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
            let other = PathBuf::from(format!("/var/tmp/queue-service-dev-{name}"));
            tracing::warn!(
                "only root may enter {}, and Postgres can't run as root: the data goes to {}",
                path.display(),
                other.display()
            );
            return Self::lock(other, false);
        }
        Self::lock(path, false)
    }

    /// A new folder that is removed at the end.
    ///
    /// # Errors
    /// It can't be made.
    pub fn throw_away() -> Result<Self, Error> {
        let name = format!("queue-service-dev-{}-{:08x}", std::process::id(), rand::random::<u32>());
        Self::lock(std::env::temp_dir().join(name), true)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn lock(path: PathBuf, throw_away: bool) -> Result<Self, Error> {
        let failed = |source| Error::Prepare { path: path.clone(), source };
        std::fs::create_dir_all(&path).map_err(failed)?;
        // The service's user must get in, others need not list it.
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o711)).map_err(failed)?;
        let lock = File::create(path.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, throw_away, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Error::Taken(path)),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.throw_away {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

fn everybody_may_enter(path: &Path) -> bool {
    path.ancestors().skip(1).all(|dir| std::fs::metadata(dir).is_ok_and(|meta| meta.mode() & 0o001 != 0))
}
