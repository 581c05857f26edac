//! Guests at the limits of what they are given.

use super::*;

/// exit_group(0) with what comes before it.
fn then_exit(code: &[u8]) -> Vec<u8> {
    let exit = [0xb8, 231, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05];
    [code, &exit].concat()
}

#[test]
fn the_stack_grows_to_its_limit() {
    // mov ecx, pages; again: sub rsp, 4096; mov [rsp], rax; dec ecx; jnz again
    let deep = |pages: u32| {
        let mut code = vec![0xb9];
        code.extend_from_slice(&pages.to_le_bytes());
        code.extend_from_slice(&[0x48, 0x81, 0xec, 0, 0x10, 0, 0]);
        code.extend_from_slice(&[0x48, 0x89, 0x04, 0x24, 0xff, 0xc9, 0x75, 0xf1]);
        elf(&then_exit(&code), &[])
    };
    for mode in [SevMode::Off, SevMode::Snp] {
        for (pages, end) in [
            (2000, GuestEnd::Exited(0)),
            (2060, GuestEnd::Killed(libc::SIGSEGV)),
        ] {
            let program = deep(pages);
            let mut m = machine(mode, &program);
            assert_eq!(m.run().expect("the guest ends").exit, end, "{pages} pages");
        }
    }
}

#[test]
fn arguments_have_room_up_to_a_quarter_of_the_stack() {
    let program = elf(&then_exit(&[]), &[]);
    let text = |n: usize| OsString::from("x".repeat(n));
    let build = |argv: Vec<OsString>, envp: Vec<OsString>| {
        let mut c = config(SevMode::Snp, &program);
        (c.argv, c.envp) = (argv, envp);
        Machine::new(c)
    };
    let many = |n: usize, len: usize| (0..n).map(|_| text(len)).collect::<Vec<_>>();
    for (argv, envp) in [
        (many(1, 1 << 20), many(1, 900_000)),
        (many(100_000, 4), many(1, 4)),
        (many(1, 4), many(100_000, 4)),
        (vec![], vec![]),
    ] {
        let mut m = build(argv, envp).expect("room");
        assert_eq!(m.run().expect("the guest ends").exit, GuestEnd::Exited(0));
    }
    for (argv, envp) in [
        (many(1, 3 << 20), vec![]),
        (vec![], many(1, 3 << 20)),
        (many(300_000, 1), vec![]),
    ] {
        match build(argv, envp) {
            Err(Error::Kernel(e)) => assert!(e.to_string().contains("arguments"), "{e}"),
            Err(e) => panic!("{e}"),
            Ok(_) => panic!("there is no room for that"),
        }
    }
}

#[test]
fn a_missing_interpreter_is_named() {
    let Ok(mut file) = std::fs::read("/bin/true") else {
        return;
    };
    let (old, new) = (
        b"/lib64/ld-linux-x86-64.so.2",
        b"/lib64/no-such-interpreter0",
    );
    let Some(at) = file.windows(old.len()).position(|w| w == old) else {
        return;
    };
    file[at..at + new.len()].copy_from_slice(new);
    let path = std::env::temp_dir().join(format!("sevlab-interp-{}", std::process::id()));
    std::fs::write(&path, file).expect("a temporary file");
    let program = Program(path);
    match Machine::new(config(SevMode::Off, &program)) {
        Err(e) => {
            let text = e.to_string();
            assert!(text.contains("/lib64/no-such-interpreter0"), "{text}");
        }
        Ok(_) => panic!("nothing could interpret that"),
    }
}

#[test]
fn memory_that_is_too_small_is_an_error_or_a_signal() {
    // A bss of 32 MiB, touched page by page.
    // lea rax, [rip + code]; mov ecx, 8192; again: add rax, 4096; mov [rax], cl; dec ecx; jnz again
    let code = [
        &[0x48, 0x8d, 0x05, 0, 0, 0, 0, 0xb9, 0, 0x20, 0, 0][..],
        &[
            0x48, 0x05, 0, 0x10, 0, 0, 0x88, 0x08, 0xff, 0xc9, 0x75, 0xf4,
        ],
    ]
    .concat();
    let program = elf(&then_exit(&code), &[]);
    let mut file = std::fs::read(&program.0).expect("the program");
    file[64 + 40..64 + 48].copy_from_slice(&(40u64 << 20).to_le_bytes());
    std::fs::write(&program.0, &file).expect("the program");
    for mode in MODES {
        for (memory, end) in [
            (64 << 20, GuestEnd::Exited(0)),
            (16 << 20, GuestEnd::Killed(libc::SIGKILL)),
        ] {
            let mut c = config(mode, &program);
            c.memory = memory;
            let mut m = Machine::new(c).expect("a machine");
            assert_eq!(m.run().expect("the guest ends").exit, end, "{mode:?}");
        }
    }
    // The image itself does not fit.
    file.resize(8 << 20, 0);
    file[64 + 32..64 + 40].copy_from_slice(&(7u64 << 20).to_le_bytes());
    std::fs::write(&program.0, &file).expect("the program");
    let mut c = config(SevMode::Snp, &program);
    c.memory = 2 << 20;
    match Machine::new(c) {
        Err(Error::Kernel(kernel::Error::OutOfMemory { what, .. })) => {
            assert_eq!(what, "the program");
        }
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("it can't fit"),
    }
}
