//! Finds the program that a command names, as a shell does.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// Where programs are if PATH is not set.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The file that `name` means: itself if it has a slash, else the first executable of that name in `path`.
pub fn find(name: &OsStr, path: Option<OsString>) -> Result<PathBuf, Failure> {
    let found = |program: PathBuf, e: &io::Error| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Failure::NotFound {
            program,
            why: e.to_string(),
        },
        _ => Failure::NotRunnable {
            program,
            why: e.to_string(),
        },
    };
    if name.is_empty() {
        let why = "the program's name is empty".to_owned();
        return Err(Failure::NotFound {
            program: PathBuf::from("\"\""),
            why,
        });
    }
    if name.as_bytes().contains(&b'/') {
        let program = PathBuf::from(name);
        return match executable(&program) {
            Ok(()) => Ok(program),
            Err(e) => Err(found(program, &e)),
        };
    }
    let path = path.unwrap_or_else(|| DEFAULT_PATH.into());
    let mut denied = None;
    for folder in std::env::split_paths(&path) {
        // An empty element is the current directory.
        let folder = if folder.as_os_str().is_empty() {
            PathBuf::from(".")
        } else {
            folder
        };
        let program = folder.join(name);
        match executable(&program) {
            Ok(()) => return Ok(program),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                denied = denied.or(Some((program, e)))
            }
            Err(_) => {}
        }
    }
    match denied {
        Some((program, e)) => Err(found(program, &e)),
        None => Err(Failure::NotFound {
            program: name.into(),
            why: format!("not found in PATH ({})", path.to_string_lossy()),
        }),
    }
}

/// Whether a file can be executed, as far as its type and mode say.
fn executable(file: &Path) -> io::Result<()> {
    let meta = fs::metadata(file)?;
    if meta.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory));
    }
    if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_like_a_shell_does() {
        let found = find(OsStr::new("sh"), Some("/nowhere:/bin".into())).expect("there is a shell");
        assert_eq!(found, Path::new("/bin/sh"));
        assert_eq!(
            find(OsStr::new("/bin/sh"), None).expect("as named"),
            Path::new("/bin/sh")
        );
        let status = |name: &str, path: &str| {
            find(OsStr::new(name), Some(path.into()))
                .expect_err("no program")
                .status()
        };
        assert_eq!(status("no-such-program", "/bin"), 127);
        assert_eq!(status("", "/bin"), 127);
        assert_eq!(status("/no/such/program", ""), 127);
        assert_eq!(status("/etc", ""), 126);
        assert_eq!(status("/etc/passwd", ""), 126);
        assert_eq!(status("passwd", "/etc"), 126);
        assert_eq!(status("etc", "/"), 127);
    }
}
