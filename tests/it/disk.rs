//! A disk that is soon full: some megabytes of memory, mounted where only the servers of one test see it. It is gone
//! with the process that holds it, however that ends.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

pub struct SmallDisk {
    path: PathBuf,
    holder: Child,
}

impl SmallDisk {
    /// Mounts it at `path`; `None` where we may not mount anything.
    pub fn mount(path: &Path, mib: u32) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        let script =
            format!("mount -t tmpfs -o size={mib}m,mode=0755 tmpfs '{}' && echo there && exec cat", path.display());
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            // Its end of input is our end.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take()?).read_line(&mut line).ok()?;
        if line.trim() == "there" {
            return Some(Self { path: path.to_owned(), holder });
        }
        let _ = holder.wait();
        None
    }

    /// Where the servers find it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where we find what the servers have at `path`.
    pub fn outside(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(path.strip_prefix("/").unwrap())
    }

    /// The same command, where the disk is seen.
    pub fn command(&self, inner: &Command) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id())).arg("--").arg(inner.get_program());
        command.args(inner.get_args());
        command
    }

    /// Writes a file that takes all that is left.
    pub fn fill(&self) {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(self.filler()).unwrap();
        for size in [1 << 20, 64 << 10, 4 << 10_usize] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    /// Removes that file.
    pub fn make_room(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.outside(&self.path.join("filler"))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}
