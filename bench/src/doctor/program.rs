//! Other programs: found in PATH, and asked with a deadline.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// How often a program is looked after.
const WATCH: Duration = Duration::from_millis(20);
/// Bytes that are read of what it says.
const SAID_BYTES_MAX: u64 = 64 << 10;

/// The program of that name in PATH.
pub fn find(name: &str) -> Option<PathBuf> {
    let runs =
        |path: &PathBuf| path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(name)).find(runs)
}

/// What a program prints on its standard output.
///
/// # Errors
/// It does not start, fails (with its last words), or takes longer than `patience`, when it is killed.
pub fn output(program: &Path, args: &[&str], patience: Duration) -> Result<String, String> {
    let (mut out, out_end) = std::io::pipe().map_err(|cause| format!("no pipe: {cause}"))?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stderr(Stdio::null()).stdout(out_end);
    let mut child = command.spawn().map_err(|cause| format!("{} does not start: {cause}", program.display()))?;
    // The command holds the writing end, whose closing is the end of what is read.
    drop(command);
    let (sender, said) = sync_channel(1);
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = (&mut out).take(SAID_BYTES_MAX).read_to_end(&mut bytes);
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    match wait(&mut child, patience) {
        None => Err(format!("{} did not end within {patience:?}", program.display())),
        Some(Ok(status)) if status.success() => {
            // A grandchild that holds the pipe would keep the reader waiting.
            said.recv_timeout(patience).map_err(|_| format!("{} leaves its output open", program.display()))
        }
        Some(Ok(status)) => Err(format!("{} ended with {status}", program.display())),
        Some(Err(cause)) => Err(format!("{} cannot be waited for: {cause}", program.display())),
    }
}

/// How a child ends; `None` where it did not in time and was killed.
pub fn wait(child: &mut Child, patience: Duration) -> Option<std::io::Result<std::process::ExitStatus>> {
    let until = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(Ok(status)),
            Err(cause) => return Some(Err(cause)),
            Ok(None) if Instant::now() >= until => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
            Ok(None) => std::thread::sleep(WATCH),
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a program that hangs, fails or is absent costs no more than its deadline. Method: such programs.

    use super::*;

    #[test]
    fn programs_answer_fail_or_are_killed() {
        let shell = find("sh").unwrap();
        let ask = |script: &str, patience| output(&shell, &["-c", script], Duration::from_millis(patience));
        assert_eq!(ask("echo it is", 10_000).unwrap(), "it is\n");
        assert!(ask("exit 3", 10_000).unwrap_err().contains("3"));
        let began = Instant::now();
        assert!(ask("exec sleep 60", 100).unwrap_err().contains("did not end"));
        assert!(began.elapsed() < Duration::from_secs(30));
        assert_eq!(find("no-such-program-anywhere"), None);
    }
}
