//! execve and its relatives. The program executes itself with `--child KIND`; what it finds then goes to the parent
//! through its standard output.

use std::ffi::CString;
use std::fmt::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};

use sevlab_workloads::sections::Settings;
use sevlab_workloads::sys::{
    self, child as fork_child, close, ended, errno, exit_now, getpid, ok, pipe,
};

/// This program's file.
pub fn own_file() -> String {
    let first = std::env::args().next().unwrap_or_default();
    if first.contains('/') {
        let path = std::fs::canonicalize(first).expect("the program's own path");
        return path.to_str().expect("in UTF-8").to_owned();
    }
    let path = std::env::current_exe().expect("the program's own path");
    path.to_str().expect("in UTF-8").to_owned()
}

/// `execve`; returns the error number.
pub fn execve(file: &str, args: &[&str], environment: &[&str]) -> i32 {
    let strings = |list: &[&str]| -> Vec<CString> {
        list.iter()
            .map(|s| CString::new(*s).expect("no NUL"))
            .collect()
    };
    let (file, args, environment) = (strings(&[file]), strings(args), strings(environment));
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter()
            .map(|s| s.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let (args, environment) = (pointers(&args), pointers(&environment));
    // SAFETY: lists of C strings that end with null.
    unsafe { libc::execve(file[0].as_ptr(), args.as_ptr(), environment.as_ptr()) };
    errno()
}

/// What this program does when it has executed itself.
pub fn child(args: &[String]) -> ! {
    let number = |n: usize| {
        args.get(n)
            .and_then(|a| a.parse::<i32>().ok())
            .unwrap_or(-1)
    };
    match args.first().map_or("", String::as_str) {
        "echo" => {
            let mut environment: Vec<String> =
                std::env::vars().map(|(k, v)| format!("{k}={v}")).collect();
            environment.sort();
            print!("{:?} {environment:?}", &args[1..]);
            exit_now_flushed(17);
        }
        "state" => {
            let mut ignored = Vec::new();
            let mut handled = Vec::new();
            for signal in (1..32).filter(|s| ![libc::SIGKILL, libc::SIGSTOP].contains(s)) {
                // SAFETY: fills a local.
                let old = unsafe {
                    let mut old: libc::sigaction = std::mem::zeroed();
                    libc::sigaction(signal, std::ptr::null(), &raw mut old);
                    old.sa_sigaction
                };
                match old {
                    libc::SIG_IGN => ignored.push(signal),
                    libc::SIG_DFL => {}
                    // Rust's own start-up handles these.
                    _ if [libc::SIGSEGV, libc::SIGBUS].contains(&signal) => {}
                    _ => handled.push(signal),
                }
            }
            // SAFETY: takes a number; asks for the mask only.
            let umask = unsafe { libc::umask(0) };
            let folder = std::env::current_dir().expect("a folder");
            print!(
                "same pid {}, mask {:?}, pending {:?}, ignored {ignored:?}, handled {handled:?}, alarm {}, umask {umask:o}, \
                 folder {}, memory {}",
                number(1) == getpid(),
                sys::members(&sys::current_mask()),
                sys::pending(),
                sys::alarm(0) > 50,
                folder.display(),
                mapped(number(2)),
            );
            exit_now_flushed(18);
        }
        "open" => {
            for fd in &args[1..] {
                let fd = fd.parse().expect("a descriptor");
                // SAFETY: asks for flags.
                let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
                print!("{} ", if flags >= 0 { "open" } else { "closed" });
            }
            exit_now_flushed(19);
        }
        "chain" => match number(1) {
            0 => {
                print!("end of the chain, {} arguments", args.len());
                exit_now_flushed(42);
            }
            n => {
                let n = (n - 1).to_string();
                let mut list = vec!["procs", "--child", "chain", &n];
                list.extend(args[2..].iter().map(String::as_str).chain(["more"]));
                let e = execve(
                    &own_path(args),
                    &list,
                    &[&format!("SELF={}", own_path(args))],
                );
                eprintln!("exec in the chain: {e}");
            }
        },
        "thread" => {
            let tasks = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
            print!(
                "same pid {}, leader {}, {tasks} thread",
                number(1) == getpid(),
                sys::gettid() == getpid()
            );
            exit_now_flushed(20);
        }
        // As the interpreter of a script, which gets the script's path.
        script if script.ends_with("/script") => {
            print!("{:?}", args);
            exit_now_flushed(21);
        }
        other => eprintln!("procs: no child named {other:?}"),
    }
    exit_now(2)
}

/// Where the program is, handed on in the environment, since its first argument has no path.
fn own_path(_: &[String]) -> String {
    std::env::var("SELF").unwrap_or_else(|_| own_file())
}

fn exit_now_flushed(status: i32) -> ! {
    std::io::Write::flush(&mut std::io::stdout()).expect("standard output");
    exit_now(status)
}

/// Whether there is memory of the old program, which had its address in pages handed on.
fn mapped(page: i32) -> bool {
    let at = (page as usize) << 12;
    let mut resident = 0u8;
    // SAFETY: asks about an address.
    page > 0 && unsafe { libc::mincore(at as *mut libc::c_void, 4096, &raw mut resident) } == 0
}

/// Runs `body` in a child with standard output in a pipe; what it wrote, and how it ended.
pub fn output_of(body: impl FnOnce() -> i32) -> String {
    let (from, to) = pipe();
    let pid = fork_child(|| {
        close(from);
        // SAFETY: plain numbers.
        unsafe { libc::dup2(to, 1) };
        close(to);
        body()
    });
    close(to);
    let text = String::from_utf8_lossy(&sys::read_all(from)).into_owned();
    close(from);
    format!("{text} ({})", ended(pid))
}

pub fn exec(_: &Settings) -> String {
    let mut out = Vec::new();
    let own = own_file();
    out.push(output_of(|| {
        execve(
            &own,
            &["a name", "--child", "echo", "", "two words", "ünï"],
            &["A=1", "EMPTY=", "B=x y"],
        )
    }));
    out.push(output_of(|| {
        execve("/proc/self/exe", &["procs", "--child", "echo", "self"], &[])
    }));
    // By descriptor.
    out.push(output_of(|| {
        let file = std::fs::File::open(&own).expect("own file");
        let args = [
            c"procs".as_ptr(),
            c"--child".as_ptr(),
            c"echo".as_ptr(),
            c"fd".as_ptr(),
            std::ptr::null(),
        ];
        let environment = [std::ptr::null()];
        // SAFETY: lists of C strings that end with null.
        unsafe {
            libc::fexecve(
                std::os::fd::AsRawFd::as_raw_fd(&file),
                args.as_ptr(),
                environment.as_ptr(),
            )
        };
        errno()
    }));
    // Long arguments, and many.
    let long = "x".repeat(100_000);
    let text = output_of(|| execve(&own, &["procs", "--child", "echo", &long], &[]));
    out.push(format!("{} bytes", text.len()));
    let many = vec!["word"; 5000];
    let text = output_of(|| {
        let mut list = vec!["procs", "--child", "echo"];
        list.extend(&many);
        execve(&own, &list, &[])
    });
    out.push(format!("{} bytes", text.len()));

    let folder = format!("/tmp/procs-{}", getpid());
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = |name: &str, text: &str, mode: u32| {
        let path = format!("{folder}/{name}");
        std::fs::write(&path, text).expect("a file");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&path, mode).expect("its mode");
        path
    };
    let script = file("script", &format!("#! {own} --child\n"), 0o755);
    let text = output_of(|| execve(&script, &["ignored", "a", "b"], &[]));
    // The kernel passes the interpreter, its one argument, and the script.
    out.push(format!("script {}", text.replace(&folder, "")));
    let shell = file("shell", "#!/bin/sh\necho \"$# $1 $0\"\nexit 6\n", 0o755);
    let text = output_of(|| execve(&shell, &["ignored", "a b", "c"], &["PATH=/bin"]));
    out.push(text.replace(&folder, "").replace('\n', ""));
    for (name, path) in [
        ("missing", format!("{folder}/missing")),
        ("folder", folder.clone()),
        ("no permission", file("plain", "#!/bin/sh\n", 0o644)),
        ("text", file("text", "no program\n", 0o755)),
        ("empty", file("empty", "", 0o755)),
        ("interpreter", file("gone", "#!/does/not/exist\n", 0o755)),
        ("component", format!("{shell}/x")),
    ] {
        out.push(format!("{name} {}", execve(&path, &["x"], &[])));
    }
    let huge = "y".repeat(132_000);
    out.push(format!("too long {}", execve(&own, &["x", &huge], &[])));
    std::fs::remove_dir_all(&folder).expect("the folder goes");
    out.join(", ")
}

extern "C" fn never(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

pub fn kept(_: &Settings) -> String {
    let own = own_file();
    output_of(|| {
        sys::handle(libc::SIGUSR1, 0, never);
        sys::handle(libc::SIGALRM, 0, never);
        sys::action(libc::SIGUSR2, 0, libc::SIG_IGN, &sys::set(&[]));
        let blocked = sys::set(&[libc::SIGHUP, libc::SIGTERM, libc::SIGRTMIN() + 3]);
        sys::mask(libc::SIG_SETMASK, &blocked);
        sys::kill(getpid(), libc::SIGTERM);
        sys::alarm(100);
        // SAFETY: plain numbers and a C string.
        unsafe {
            libc::umask(0o027);
            libc::chdir(c"/usr".as_ptr());
        }
        // An address that no program is loaded at.
        let place = 0x1_2345_0000usize;
        // SAFETY: maps a page where nothing is.
        unsafe {
            libc::mmap(
                place as *mut libc::c_void,
                4096,
                sys::RW,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            );
        }
        let (pid, page) = (getpid().to_string(), (place >> 12).to_string());
        execve(&own, &["procs", "--child", "state", &pid, &page], &[])
    })
}

pub fn cloexec(_: &Settings) -> String {
    let own = own_file();
    let mut out = output_of(|| {
        let (plain, closed) = pipe();
        let mut ends = [0; 2];
        // SAFETY: plain numbers, and room for two.
        unsafe {
            libc::fcntl(closed, libc::F_SETFD, libc::FD_CLOEXEC);
            libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC);
            let copy = libc::dup(closed);
            let moved = libc::dup3(plain, 77, libc::O_CLOEXEC);
            let above = libc::fcntl(plain, libc::F_DUPFD_CLOEXEC, 90);
            let kept = libc::fcntl(closed, libc::F_DUPFD, 100);
            let list = [plain, closed, ends[0], ends[1], copy, moved, above, kept]
                .map(|fd| fd.to_string());
            let mut args = vec!["procs", "--child", "open"];
            args.extend(list.iter().map(String::as_str));
            execve(&own, &args, &[])
        }
    });
    // A file's offset is that of the open file, whoever reads.
    let fd = sys::memfd(0);
    sys::write(fd, b"0123456789abcdefghij");
    // SAFETY: plain numbers.
    let offset = |to, how| unsafe { libc::lseek(fd, to, how) };
    offset(3, libc::SEEK_SET);
    let first = output_of(|| {
        sys::write(1, &sys::read(fd, 4).expect("four bytes"));
        0
    });
    let rest = sys::read(fd, 4).expect("four bytes");
    let _ = write!(
        out,
        ", {first} then {} at {}",
        String::from_utf8_lossy(&rest),
        offset(0, libc::SEEK_CUR)
    );
    close(fd);
    out
}

pub fn spawn(_: &Settings) -> String {
    let mut out = Vec::new();
    let own = own_file();
    // The standard library: its output, its status, and its input.
    let run = Command::new(&own)
        .args(["--child", "echo", "from", "Command"])
        .env_clear()
        .env("X", "y")
        .output()
        .expect("it runs");
    out.push(format!(
        "{} ({:?})",
        String::from_utf8_lossy(&run.stdout),
        run.status.code()
    ));
    let mut cat = Command::new("/bin/cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("cat runs");
    std::io::Write::write_all(&mut cat.stdin.take().expect("piped"), b"through cat")
        .expect("written");
    let run = cat.wait_with_output().expect("cat ends");
    out.push(format!(
        "{} ({:?})",
        String::from_utf8_lossy(&run.stdout),
        run.status.code()
    ));
    let failed = Command::new("/does/not/exist")
        .spawn()
        .expect_err("no such program");
    out.push(format!("{:?}", failed.raw_os_error()));
    // With something to do between fork and exec.
    // SAFETY: what runs in the child calls nothing but system calls.
    let status = unsafe {
        Command::new("/bin/sh")
            .args(["-c", "kill -TERM $$"])
            .pre_exec(|| {
                libc::setpgid(0, 0);
                Ok(())
            })
            .status()
            .expect("sh runs")
    };
    out.push(format!("{:?} {:?}", status.code(), status.signal()));

    // posix_spawn itself: file actions, attributes, and its error.
    let (from, to) = pipe();
    let file = CString::new(own).expect("no NUL");
    let mut args: Vec<*mut libc::c_char> = [c"procs", c"--child", c"echo", c"spawned"]
        .map(|s| s.as_ptr().cast_mut())
        .into();
    args.push(std::ptr::null_mut());
    let environment = [std::ptr::null_mut()];
    // SAFETY: the C library's structures are initialised by its own functions; lists end with null.
    let (pid, error) = unsafe {
        let mut actions: libc::posix_spawn_file_actions_t = std::mem::zeroed();
        let mut attributes: libc::posix_spawnattr_t = std::mem::zeroed();
        libc::posix_spawn_file_actions_init(&raw mut actions);
        libc::posix_spawnattr_init(&raw mut attributes);
        libc::posix_spawn_file_actions_adddup2(&raw mut actions, to, 1);
        libc::posix_spawn_file_actions_addclose(&raw mut actions, to);
        libc::posix_spawn_file_actions_addclose(&raw mut actions, from);
        let null = c"/dev/null".as_ptr();
        libc::posix_spawn_file_actions_addopen(&raw mut actions, 0, null, libc::O_RDONLY, 0);
        let flags = libc::POSIX_SPAWN_SETPGROUP
            | libc::POSIX_SPAWN_SETSIGMASK
            | libc::POSIX_SPAWN_SETSIGDEF;
        libc::posix_spawnattr_setflags(&raw mut attributes, flags as libc::c_short);
        libc::posix_spawnattr_setsigmask(&raw mut attributes, &sys::set(&[libc::SIGUSR1]));
        libc::posix_spawnattr_setsigdefault(&raw mut attributes, &sys::set(&[libc::SIGPIPE]));
        let mut pid = 0;
        let r = libc::posix_spawn(
            &raw mut pid,
            file.as_ptr(),
            &raw const actions,
            &raw const attributes,
            args.as_ptr(),
            environment.as_ptr(),
        );
        assert_eq!(r, 0, "posix_spawn");
        let mut none = 0;
        let error = libc::posix_spawn(
            &raw mut none,
            c"/does/not/exist".as_ptr(),
            std::ptr::null(),
            std::ptr::null(),
            args.as_ptr(),
            environment.as_ptr(),
        );
        libc::posix_spawn_file_actions_destroy(&raw mut actions);
        libc::posix_spawnattr_destroy(&raw mut attributes);
        (pid, error)
    };
    close(to);
    let text = String::from_utf8_lossy(&sys::read_all(from)).into_owned();
    close(from);
    out.push(format!("{text} ({}), error {error}", ended(pid)));
    out.push(
        Command::new("/bin/sh")
            .args(["-c", "exit 3"])
            .exec_in_child(),
    );
    out.join(", ")
}

/// `exec` without a fork of the standard library's own.
trait ExecInChild {
    fn exec_in_child(&mut self) -> String;
}

impl ExecInChild for Command {
    fn exec_in_child(&mut self) -> String {
        ended(fork_child(|| {
            let e = self.exec();
            e.raw_os_error().unwrap_or(99)
        }))
    }
}

pub fn chain(_: &Settings) -> String {
    let own = own_file();
    let variable = format!("SELF={own}");
    let before = sys::read(ok_null(), 1).map(|b| b.len());
    let text = output_of(|| execve(&own, &["procs", "--child", "chain", "25"], &[&variable]));
    format!("{text}, null {before:?}")
}

/// A descriptor that is inherited by all of the chain.
fn ok_null() -> i32 {
    // SAFETY: a C string.
    ok("open", unsafe {
        libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY)
    })
}
