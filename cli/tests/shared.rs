//! Shared mappings, end to end: what programs see of files that they map is what the files hold, whoever writes to them.

mod common;

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::process::Stdio;

use common::compare::Case;
use common::{Mode, all_modes, compile_c, sevlab_run};

const SOURCE: &str = include_str!("shared/mappings.c");
const FORKED: &str = include_str!("shared/forked.c");
const PARTNER: &str = include_str!("shared/partner.c");

#[test]
fn mappings_are_what_they_are_natively() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let flags = ["-O1", "-w"];
    if let Some(program) = compile_c(SOURCE, folder.path(), "mappings", &flags) {
        Case::new(program, &[]).check(&all_modes());
    }
}

#[test]
fn a_forked_child_shares_what_is_mapped_shared() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let flags = ["-O1", "-w"];
    if let Some(program) = compile_c(FORKED, folder.path(), "forked", &flags) {
        Case::new(program, &[]).check(&all_modes());
    }
}

/// A guest and this process change a file that both have in use, in turn; then the guest lives through its end being cut off.
#[test]
fn the_host_and_a_guest_share_a_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(program) = compile_c(PARTNER, folder.path(), "partner", &["-O1", "-w"]) else {
        return;
    };
    let modes = [
        Mode::new("off", true, "page"),
        Mode::new("sev", false, "none"),
        Mode::new("es", true, "none"),
        Mode::new("snp", true, "page"),
    ];
    for mode in modes {
        let path = folder.path().join("shared");
        fs::write(&path, vec![0; 3 << 20]).expect("a file");
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.expect("just made");
        let mut guest = sevlab_run(mode, &[])
            .arg(&program)
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sevlab runs");
        let mut to = guest.stdin.take().expect("piped");
        let mut from = BufReader::new(guest.stdout.take().expect("piped")).lines();
        let mut say = |text: &str| {
            to.write_all(text.as_bytes()).expect("the guest listens");
            from.next().expect("an answer").expect("text")
        };
        for i in 1..200u64 {
            let at = i * 13_001 % (3 << 20);
            file.write_all_at(&[i as u8], at).expect("written");
            // The guest says what it finds there, and writes behind it.
            assert_eq!(say(&format!("{at}\n")), format!("{}", i as u8), "{mode}");
            let mut next = [0];
            file.read_exact_at(&mut next, at + 1).expect("read");
            assert_eq!(next[0], !(i as u8), "{mode}");
        }
        file.set_len(1 << 20).expect("cut off");
        let (inside, outside) = (4096, 2 << 20);
        let first = say(&format!("{inside}\n"));
        assert!(first.parse::<u8>().is_ok(), "{mode}: {first}");
        // Zeroes, or SIGBUS if the page was not mapped yet; but not the end of sevlab.
        let cut = say(&format!("{outside}\n"));
        assert!(cut == "0" || cut == "SIGBUS", "{mode}: {cut}");
        drop(to);
        assert!(guest.wait().expect("it ends").success(), "{mode}");
        assert_eq!(fs::metadata(&path).expect("there").len(), 1 << 20);
    }
}
